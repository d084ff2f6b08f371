"""Trained models on disk: a folder with weights, configuration and model card."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from difflens.backbones.config import CONDITION_FILE, BackboneConfig
from difflens.backbones.encoder import TASK as ENCODER_TASK
from difflens.backbones.load import resolved
from difflens.backbones.runs import read_backbone
from difflens.backbones.text import save_condition
from difflens.choices import Exif
from difflens.data.dense.base import IGNORED
from difflens.data.images import check_shape, in_range
from difflens.errors import DiffLensError, counted, expanded, require
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.config import ExtractorConfig
from difflens.heads.config import DetectionHeadConfig, HeadConfig, SegmentationHeadConfig
from difflens.heads.detection import DetectionHead
from difflens.heads.make import make_head
from difflens.heads.segmentation import SegmentationHead
from difflens.models.probe import DenseProbe, MultiLabelProbe, Probe
from difflens.noise import PICTURE
from difflens.run.files import write_text
from difflens.run.memory import built
from difflens.run.reading import (
    FieldError,
    checked,
    field_in,
    read_json,
    read_tensors,
    reason,
    shapes_of,
    short,
)
from difflens.run.text import markdown, markdown_code
from difflens.version import __version__

H = TypeVar("H", bound=nn.Module)


@dataclass
class SavedModel(ABC):
    """A trained model with the configuration to build it again: the content of `model/` in a run directory.

    Attributes:
        task: the task in config.json.
        title, tag: the title and the Hugging Face tag of the model card.
        head_kind: the class of `head`.
        probe: the network.
        classes: names of the classes, in the order of the logits.
        backbone, extractor, head: the configurations that build the probe.
        fingerprint: fingerprint of the loaded backbone, before its weights were trained or converted.
        info: facts about the training, for the model card.
    """

    task: ClassVar[str]
    title: ClassVar[str]
    tag: ClassVar[str]
    head_kind: ClassVar[type]

    probe: Any
    classes: tuple[str, ...]
    backbone: BackboneConfig
    extractor: ExtractorConfig
    head: Any
    fingerprint: str
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @abstractmethod
    def make(cls, extractor: Extractor, head: Any, num_classes: int) -> Any:
        """Return an untrained probe with the head of a configuration."""

    @property
    def exif(self) -> Exif:
        """Whether pictures are turned upright, as those were that the model was trained on."""
        return "ignore" if self.info.get("exif") == "ignore" else "apply"

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        tensors = chain(self.probe.head.parameters(), self.probe.head.buffers())
        return next((tensor.device for tensor in tensors), self.probe.extractor.backbone.device)

    def save(self, folder: Path | str) -> None:
        """Write model.safetensors, config.json and README.md into an existing folder."""
        folder = expanded(folder)
        state = {name: value.detach().cpu().contiguous() for name, value in self.probe.own_state().items()}
        save_file(state, folder / "model.safetensors")
        # absolute paths, so that the model can be used from any working directory
        backbone = self.backbone.stored() | {"spec": resolved(self.backbone.spec)}
        if self.backbone.autoencoder is not None:
            backbone["autoencoder"] = str(expanded(self.backbone.autoencoder).resolve())
        condition = getattr(self.probe.extractor.backbone, "condition", None)
        if condition is not None and condition.computed:
            save_condition(folder / CONDITION_FILE, condition.tensors)
        config = {
            "difflens": __version__,
            "task": self.task,
            "classes": self.classes,
            "backbone": {**backbone, "fingerprint": self.fingerprint},
            "extractor": asdict(self.extractor),
            "head": asdict(self.head),
            "info": self.info,
        }
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        write_text(folder / "README.md", self._card(config))

    @classmethod
    def load(
        cls, folder: Path | str, backbone: str | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """Load a model that `save` wrote.

        Args:
            folder: a run's `model/`, or the run directory itself.
            backbone: the spec of the backbone, if it has moved.
            device: the device for the probe.

        Raises:
            DiffLensError: the folder holds no model of this task, the model is damaged, or its backbone
                is missing or has changed.
        """
        folder = model_folder(folder)
        config_path, weights = folder / "config.json", folder / "model.safetensors"
        stored = stored_model(folder, cls)
        kept = folder / CONDITION_FILE
        backbone_config = replace(
            stored.backbone,
            spec=backbone or stored.backbone.spec,
            condition_file=str(kept) if kept.is_file() else None,
        )
        try:
            network = backbone_config.load(device)
        except DiffLensError as error:
            encoder = stored.backbone.autoencoder
            gone = encoder is not None and not Path(encoder).is_dir()
            remedy = (
                f"Its autoencoder was {encoder}, as {config_path} says"
                if gone
                else "If it has moved, name it with --backbone"
            )
            raise DiffLensError(f"the backbone of {folder} cannot be loaded: {error}. {remedy}") from error
        if network.fingerprint() != stored.fingerprint:
            raise DiffLensError(
                f"the backbone {backbone_config.spec} has changed since {folder} was trained on it: the "
                "weights or the configuration differ. Train again, or name the right backbone with --backbone"
            )
        try:
            built = stored.extractor.build(network)
            # a prediction of a few images takes less time than a compilation
            built.compiled = False
            with torch.device("meta"):  # a head that is not that of the weights may not fit into memory
                outline = cls.make(built, stored.head, len(stored.classes))
            outline.check_own_shapes(shapes_of(weights))
            probe = cls.make(built, stored.head, len(stored.classes)).to(device)
        except (DiffLensError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DiffLensError(f"{config_path} does not describe the model: {reason(error)}") from error
        try:
            probe.load_own_state(read_tensors(weights, str(device)))
        except RuntimeError as error:
            raise DiffLensError(f"{weights} is damaged: {reason(error)}") from error
        return cls(
            probe.eval(),
            stored.classes,
            backbone_config,
            stored.extractor,
            stored.head,
            stored.fingerprint,
            dict(stored.info),
        )

    def _card(self, config: dict[str, Any]) -> str:
        """Return the model card, in Markdown."""
        rows = {
            "backbone": markdown_code(config["backbone"]["spec"]),
            "extractor": f"{self.extractor.name}, blocks {list(self.extractor.blocks)}, "
            f"noise steps {list(self.extractor.noise_steps)}",
            "head": f"{self.head.name}, {counted(self.probe.trainable_parameters, 'trainable parameter')}",
            "classes": f"{len(self.classes)}",
            **{
                key.replace("_", " "): markdown(value if isinstance(value, str) else short(value))
                for key, value in self.info.items()
            },
            "difflens": config["difflens"],
        }
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        return f"""---
library_name: difflens
tags: [{self.tag}]
---
# {self.title} on diffusion features

| | |
|---|---|
{table}

    difflens predict {{this folder}} IMAGE_OR_FOLDER
"""


@dataclass
class TrainedModel(SavedModel):
    """A classifier of images with one label."""

    probe_kind: ClassVar[type[Probe]] = Probe
    task, title, tag, head_kind = "classification", "Classifier", "image-classification", HeadConfig

    probe: Probe
    head: HeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: HeadConfig, num_classes: int) -> Probe:
        return cls.probe_kind(extractor, make_head(head, extractor.shapes(), num_classes))

    @torch.no_grad()
    def probabilities(self, images: Tensor, draws: int = 1) -> Tensor:
        """Return class probabilities (B, num_classes) of images (B, C, S, S) in [-1, 1].

        They sum to 1; of a model of several labels an image, each is the probability of having the class. All
        images get the same noise (`noise.PICTURE`): the result for one does not depend on the others.

        Args:
            draws: number of noise samples to average over, at least 1.

        Raises:
            DiffLensError: the images have other channels or another range, or there are no draws.
        """
        require(draws=(draws, 1, None))
        check_shape(images, self.probe.extractor.backbone.in_channels, "the model")
        in_range(images)
        if not len(images):
            return images.new_zeros(0, len(self.classes))
        index = torch.full((len(images),), PICTURE, device=images.device)
        with evaluating(self.probe):
            logits = (self.probe(images, index, draw) for draw in range(draws))
            return torch.stack([self.probe.probabilities(each) for each in logits]).mean(0)


@dataclass
class MultiLabelModel(TrainedModel):
    """A classifier of images with several labels, or none of the classes."""

    probe_kind = MultiLabelProbe
    task, title = "multi-label classification", "Multi-label classifier"


@dataclass
class SegmentationModel(SavedModel):
    """A model of semantic segmentation."""

    task, title, tag = "segmentation", "Semantic segmentation", "image-segmentation"
    head_kind = SegmentationHeadConfig

    probe: DenseProbe
    head: SegmentationHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: SegmentationHeadConfig, num_classes: int) -> DenseProbe:
        shapes = extractor.shapes(head.side)
        return DenseProbe(extractor, _dense(partial(SegmentationHead, head, shapes, num_classes)))

    @property
    def mask_values(self) -> tuple[int, ...]:
        """The value of each class in the masks that the model was trained on, 0 to 254; its number if none is
        stored.

        Raises:
            FieldError: they are not one value a class.
        """
        stored = self.info.get("mask_values", [*range(len(self.classes))])
        values = checked(tuple[int, ...], stored, "mask_values")
        if len({*values} & {*range(IGNORED)}) != len(values) or len(values) != len(self.classes):
            raise FieldError(f"mask_values is {short(stored)}; it must have one value, 0 to 254, a class")
        return values


@dataclass
class DetectionModel(SavedModel):
    """A model that detects objects with boxes and, for Mask R-CNN, masks."""

    task, title, tag, head_kind = "detection", "Detection", "object-detection", DetectionHeadConfig

    probe: DenseProbe
    head: DetectionHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: DetectionHeadConfig, num_classes: int) -> DenseProbe:
        shapes = extractor.shapes(head.side)
        return DenseProbe(extractor, _dense(partial(DetectionHead, head, shapes, num_classes)))


MODELS: dict[str, type[SavedModel]] = {
    kind.task: kind for kind in (TrainedModel, MultiLabelModel, SegmentationModel, DetectionModel)
}
"""The models by their task in config.json."""


def _dense(make: Callable[[], H]) -> H:
    """Return the head that `make` gives, if it fits into memory."""
    return built(make, "the head", "lower --width")


def model_folder(folder: Path | str) -> Path:
    """Return the folder of a model: `folder` itself, or its `model/` if `folder` is a run directory.

    Raises:
        DiffLensError: the folder holds no model.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise DiffLensError(f"{folder} is a file" if folder.exists() else f"no such folder: {folder}")
    folder = folder / "model" if (folder / "model").is_dir() else folder
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DiffLensError(f"{folder} is not a difflens model: there is no {name} in it")
    return folder


def is_model(folder: Path) -> bool:
    """Return True if a folder, or its `model/`, holds a model with a head. An encoder is a backbone."""
    home = folder / "model" if (folder / "model" / "model.safetensors").is_file() else folder
    if not (home / "model.safetensors").is_file():
        return False
    try:
        description = read_json(home / "config.json", dict[str, Any])
    except DiffLensError:
        return True  # loading it says what is wrong
    return description.get("task") != ENCODER_TASK


def model_task(folder: Path | str) -> str:
    """Return the task of a saved model, a key of `MODELS`.

    Raises:
        DiffLensError: the folder holds no model, or one of another task.
    """
    path = model_folder(folder) / "config.json"
    task = read_json(path, lambda config: checked(str, config.get("task", TrainedModel.task), "task"))
    if task not in MODELS:
        raise DiffLensError(f"{path}: task is {short(task)}; this version knows {', '.join(MODELS)}")
    return task


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """The content of a model's config.json, without version and task."""

    backbone: BackboneConfig
    fingerprint: str
    extractor: ExtractorConfig
    head: Any
    classes: tuple[str, ...]
    info: Mapping[str, Any]


def stored_model(folder: Path, kind: type[SavedModel]) -> StoredModel:
    """Return the configuration of a saved model.

    Raises:
        DiffLensError: the folder holds no model of this kind, or a field of config.json is missing, wrong, or
            not known to this version.
    """

    home = model_folder(folder)

    def parse(config: dict[str, Any]) -> StoredModel:
        backbone = read_backbone(config, home)
        classes = field_in(config, "classes", tuple[str, ...])
        if not classes:
            raise FieldError("classes is empty")
        return StoredModel(
            fingerprint=backbone.fingerprint,
            backbone=backbone.config,
            extractor=field_in(config, "extractor", ExtractorConfig),
            head=field_in(config, "head", kind.head_kind),
            classes=classes,
            info=checked(dict[str, Any], config.get("info", {}), "info"),
        )

    task = model_task(folder)
    if task != kind.task:
        raise DiffLensError(f"{folder} is a model of {task}, not of {kind.task}")
    return read_json(home / "config.json", parse)
