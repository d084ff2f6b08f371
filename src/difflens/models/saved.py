"""Trained models on disk: a folder with weights, configuration and model card."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.backbones.config import CONDITION_FILE, BackboneConfig
from difflens.backbones.load import resolved
from difflens.backbones.text import save_condition
from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.config import ExtractorConfig
from difflens.heads.config import DetectionHeadConfig, HeadConfig, SegmentationHeadConfig
from difflens.heads.detection import DetectionHead
from difflens.heads.make import make_head
from difflens.heads.segmentation import SegmentationHead
from difflens.models.probe import DenseProbe, Probe
from difflens.run.files import write_text
from difflens.run.text import markdown, markdown_code
from difflens.version import __version__


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

    def save(self, folder: Path) -> None:
        """Write model.safetensors, config.json and README.md into an existing folder."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.probe.own_state().items()}
        save_file(state, folder / "model.safetensors")
        # an absolute path, so that the model can be used from any working directory
        backbone = self.backbone.stored() | {"spec": resolved(self.backbone.spec)}
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
    def load(cls, folder: Path, backbone: str | None = None, device: torch.device | str = "cpu") -> Self:
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
        task = model_task(folder)
        if task != cls.task:
            raise DiffLensError(f"{folder} is a model of {task}, not of {cls.task}")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
            stored = dict(config["backbone"])
            fingerprint = stored.pop("fingerprint")
            kept = folder / CONDITION_FILE
            stored["condition_file"] = str(kept) if kept.is_file() else None
            backbone_config = BackboneConfig(**stored)
            extractor = ExtractorConfig(**_tuples(config["extractor"]))
            head, classes = cls.head_kind(**_tuples(config["head"])), tuple(config["classes"])
        except (ValueError, KeyError, TypeError) as error:
            raise DiffLensError(
                f"{config_path} is not a difflens model's configuration: {error!r}"
            ) from error
        if backbone is not None:
            backbone_config = BackboneConfig(**{**stored, "spec": backbone})
        try:
            network = backbone_config.load(device)
        except DiffLensError as error:
            raise DiffLensError(
                f"the backbone of {folder} cannot be loaded: {error}. "
                "If it has moved, name it with --backbone"
            ) from error
        if network.fingerprint() != fingerprint:
            raise DiffLensError(
                f"the backbone {backbone_config.spec} has changed since {folder} was trained on it: the "
                "weights or the configuration differ. Train again, or name the right backbone with --backbone"
            )
        try:
            built = extractor.build(network)
            # a prediction of a few images takes less time than a compilation
            built.compiled = False
            probe = cls.make(built, head, len(classes)).to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DiffLensError(f"{config_path} does not describe a model: {error}") from error
        try:
            probe.load_own_state(load_file(weights, device=str(device)))
        except SafetensorError as error:
            raise DiffLensError(f"{weights} is damaged: {error}") from error
        info = config.get("info", {})
        return cls(probe.eval(), classes, backbone_config, extractor, head, fingerprint, info)

    def _card(self, config: dict[str, Any]) -> str:
        """Return the model card, in Markdown."""
        rows = {
            "backbone": markdown_code(self.backbone.spec),
            "extractor": f"{self.extractor.name}, blocks {list(self.extractor.blocks)}, "
            f"noise steps {list(self.extractor.noise_steps)}",
            "head": f"{self.head.name}, {self.probe.trainable_parameters:,} trainable parameters",
            "classes": f"{len(self.classes)}",
            **{key.replace("_", " "): markdown(value) for key, value in self.info.items()},
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
    """A classifier."""

    task, title, tag, head_kind = "classification", "Classifier", "image-classification", HeadConfig

    probe: Probe
    head: HeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: HeadConfig, num_classes: int) -> Probe:
        return Probe(extractor, make_head(head, extractor.shapes(), num_classes))

    @torch.no_grad()
    def probabilities(self, images: Tensor, draws: int = 1) -> Tensor:
        """Return class probabilities (B, num_classes) of images (B, C, S, S) in [-1, 1].

        All images get the noise of index 0: the result for one does not depend on the others.

        Args:
            draws: number of noise samples to average over.
        """
        index = torch.zeros(len(images), dtype=torch.long, device=images.device)
        with evaluating(self.probe):
            return torch.stack([self.probe(images, index, draw).softmax(1) for draw in range(draws)]).mean(0)


@dataclass
class SegmentationModel(SavedModel):
    """A model of semantic segmentation."""

    task, title, tag = "segmentation", "Semantic segmentation", "image-segmentation"
    head_kind = SegmentationHeadConfig

    probe: DenseProbe
    head: SegmentationHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: SegmentationHeadConfig, num_classes: int) -> DenseProbe:
        return DenseProbe(extractor, SegmentationHead(head, extractor.shapes(head.side), num_classes))


@dataclass
class DetectionModel(SavedModel):
    """A model that detects objects with boxes and, for Mask R-CNN, masks."""

    task, title, tag, head_kind = "detection", "Detection", "object-detection", DetectionHeadConfig

    probe: DenseProbe
    head: DetectionHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: DetectionHeadConfig, num_classes: int) -> DenseProbe:
        return DenseProbe(extractor, DetectionHead(head, extractor.shapes(head.side), num_classes))


def model_folder(folder: Path) -> Path:
    """Return the folder of a model: `folder` itself, or its `model/` if `folder` is a run directory.

    Raises:
        DiffLensError: the folder holds no model.
    """
    folder = folder / "model" if (folder / "model").is_dir() else folder
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DiffLensError(f"{folder} is not a difflens model: there is no {name} in it")
    return folder


def model_task(folder: Path) -> str:
    """Return the task of a saved model: "classification", "segmentation" or "detection".

    Raises:
        DiffLensError: the folder holds no model, or one of another task.
    """
    path = model_folder(folder) / "config.json"
    tasks = [kind.task for kind in (TrainedModel, SegmentationModel, DetectionModel)]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        task = config.get("task", TrainedModel.task)
    except (ValueError, AttributeError) as error:
        raise DiffLensError(f"{path} is not a difflens model's configuration: {error!r}") from error
    if task not in tasks:
        raise DiffLensError(f"{path} is a model of {task!r}; this version knows {', '.join(tasks)}")
    return str(task)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with tuples for JSON's lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
