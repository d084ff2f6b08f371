"""An extractor and a head, as one model: trained, saved, loaded again, and asked about images."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difflens.backbones.blocks import Backbone
from difflens.backbones.load import load_backbone, resolved
from difflens.errors import DiffLensError
from difflens.extract import Extractor, FeedbackExtractor, FineTunedExtractor, FrozenExtractor
from difflens.heads import Head, HeadConfig, make_head
from difflens.heads.detection import DetectionHead, DetectionHeadConfig
from difflens.heads.segmentation import SegmentationHead, SegmentationHeadConfig
from difflens.noise import ScheduleName
from difflens.training import ParameterGroup, Precision
from difflens.version import __version__

ExtractorName = Literal["frozen", "feedback", "finetuned"]


class BackboneOptions(Protocol):
    """What the configuration of every command that loads a backbone has."""

    @property
    def num_head_channels(self) -> int: ...

    @property
    def noise_schedule(self) -> ScheduleName: ...

    @property
    def image_size(self) -> int | None: ...


@dataclass(frozen=True)
class BackboneConfig:
    """What `load_backbone` needs."""

    spec: str
    num_head_channels: int = 64
    noise_schedule: ScheduleName = "linear"
    image_size: int | None = None

    @classmethod
    def of(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """The backbone `spec` with what a command's configuration says of backbones."""
        return cls(spec, options.num_head_channels, options.noise_schedule, options.image_size)

    def load(self, device: torch.device | str = "cpu") -> Backbone:
        return load_backbone(
            self.spec, num_head_channels=self.num_head_channels, noise_schedule=self.noise_schedule,
            image_size=self.image_size, device=device,
        )  # fmt: skip


@dataclass(frozen=True)
class ExtractorConfig:
    """What an extractor needs besides its backbone.

    Attributes:
        checkpoint: less memory for slower steps, with feedback.
    """

    name: ExtractorName
    blocks: tuple[int, ...]
    noise_steps: tuple[int, ...]
    seed: int = 0
    feedback_blocks: tuple[int, ...] | None = None
    from_block: int = 1
    precision: Precision = "float32"
    draws: int = 1
    checkpoint: bool = False

    def build(self, backbone: Backbone) -> Extractor:
        """The extractor on `backbone`, whose weights become `precision`."""
        if self.checkpoint and self.name != "feedback":
            raise DiffLensError(
                "--checkpoint-activations is for the feedback extractor: others make no second pass"
            )
        if self.precision != "float32":
            if self.name == "finetuned":
                raise DiffLensError("a fine-tuned backbone keeps float32 weights: leave out --precision")
            backbone.to(getattr(torch, self.precision))
        common = backbone, self.blocks, self.noise_steps, self.seed
        if self.name == "feedback":
            extractor = FeedbackExtractor(*common, feedback_blocks=self.feedback_blocks, draws=self.draws)
            extractor.checkpoint = self.checkpoint
            return extractor
        if self.name == "finetuned":
            return FineTunedExtractor(*common, from_block=self.from_block, draws=self.draws)
        return FrozenExtractor(*common, draws=self.draws)


class FeatureModel(nn.Module):
    """A head on an extractor's maps."""

    extractor: Extractor
    head: nn.Module

    def __init__(self, extractor: Extractor, head: nn.Module):
        super().__init__()
        self.extractor, self.head = extractor, head

    @property
    def trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, layer_decay: float
    ) -> list[ParameterGroup]:
        """What is trained, at which rate: all at the same, but a fine-tuned backbone block by block if that decays."""
        blocks = self.extractor.trained_blocks if layer_decay != 1 else {}
        groups = [
            ParameterGroup(parameters, learning_rate * layer_decay**depth, weight_decay)
            for depth, parameters in enumerate(reversed(blocks.values()), start=1)
        ]
        grouped = {id(parameter) for group in groups for parameter in group.parameters}
        others = [parameter for parameter in self.parameters() if id(parameter) not in grouped]
        return [ParameterGroup(others, learning_rate, weight_decay), *groups]

    def own_state(self) -> dict[str, Tensor]:
        """Everything training changes: the head, feedback layers with their statistics, fine-tuned weights."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        buffers = {name for name, _ in self.named_buffers() if name.startswith("extractor.backbone.")}
        return {name: value for name, value in self.state_dict().items() if name not in frozen | buffers}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` gave; DiffLensError if it is of another model."""
        mine = self.own_state()
        different = sorted({*state} ^ {*mine}) or sorted(
            name for name in mine if mine[name].shape != state[name].shape
        )
        if different:
            raise DiffLensError(f"the weights are of another model: {different[0]} does not fit")
        self.load_state_dict(state, strict=False)


class Probe(FeatureModel):
    """Images to logits."""

    head: Head

    def __init__(self, extractor: Extractor, head: Head):
        super().__init__(extractor, head)

    def forward(self, images: Tensor, index: Tensor, draw: int = 0) -> Tensor:
        """Logits (B, num_classes) of images (B, C, S, S) in [-1, 1]; `index`, `draw` as for extractors."""
        return self.head(self.extractor(images, index, draw))


class DenseProbe(FeatureModel):
    """Images to a class for every pixel, or to objects."""

    def forward(self, images: Tensor, index: Tensor, draw: int, **more: Any) -> Any:
        """What the head makes of the maps of images (B, C, S, S) in [-1, 1]; it takes `more`."""
        return self.head(self.extractor(images, index, draw), **more)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode comes back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@dataclass
class SavedModel(ABC):
    """A trained model with all that is needed to use it: what `model/` in a run directory holds.

    Attributes:
        probe: on the CPU after loading.
        classes: names, in the order of the logits.
        backbone, extractor, head: how to build the probe.
        fingerprint: of the backbone as it was loaded, before anything trained or converted its weights.
        info: anything worth knowing about its training, for the model card.
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
        """An untrained probe from a head's configuration."""

    def save(self, folder: Path) -> None:
        """Write model.safetensors, config.json and README.md into an existing folder."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.probe.own_state().items()}
        save_file(state, folder / "model.safetensors")
        # so that the model can be used from any folder
        backbone = asdict(self.backbone) | {"spec": resolved(self.backbone.spec)}
        config = {
            "difflens": __version__,
            "task": self.task,
            "classes": self.classes,
            "backbone": {**backbone, "fingerprint": self.fingerprint},
            "extractor": asdict(self.extractor),
            "head": asdict(self.head),
            "info": self.info,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "README.md").write_text(self._card(config))

    @classmethod
    def load(cls, folder: Path, backbone: str | None = None, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote.

        Args:
            folder: a run's `model/`, or the run directory itself.
            backbone: where the backbone is now, if it has moved.
            device: where to put the probe.

        Raises:
            DiffLensError: no model is there, it is damaged, or its backbone is gone or has changed.
        """
        folder = model_folder(folder)
        config_path, weights = folder / "config.json", folder / "model.safetensors"
        task = model_task(folder)
        if task != cls.task:
            raise DiffLensError(f"{folder} is a model of {task}, not of {cls.task}")
        try:
            config = json.loads(config_path.read_text())
            stored = dict(config["backbone"])
            fingerprint = stored.pop("fingerprint")
            found = BackboneConfig(**stored)
            extractor = ExtractorConfig(**_tuples(config["extractor"]))
            head, classes = cls.head_kind(**_tuples(config["head"])), tuple(config["classes"])
        except (ValueError, KeyError, TypeError) as error:
            raise DiffLensError(
                f"{config_path} is not a difflens model's configuration: {error!r}"
            ) from error
        if backbone is not None:
            found = BackboneConfig(**{**stored, "spec": backbone})
        try:
            network = found.load(device)
        except DiffLensError as error:
            raise DiffLensError(
                f"the backbone of {folder} cannot be loaded: {error}. If it has moved, name it with --backbone"
            ) from error
        if network.fingerprint() != fingerprint:
            raise DiffLensError(
                f"the backbone {found.spec} has changed since {folder} was trained on it: the weights or the "
                "configuration differ. Train again, or name the right backbone with --backbone"
            )
        try:
            built = extractor.build(network)
            built.compiled = (
                False  # the images that a loaded model is shown are read sooner than a graph is made
            )
            probe = cls.make(built, head, len(classes)).to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DiffLensError(f"{config_path} does not describe a model: {error}") from error
        try:
            probe.load_own_state(load_file(weights, device=str(device)))
        except SafetensorError as error:
            raise DiffLensError(f"{weights} is damaged: {error}") from error
        return cls(probe.eval(), classes, found, extractor, head, fingerprint, config.get("info", {}))

    def _card(self, config: dict[str, Any]) -> str:
        rows = {
            "backbone": f"`{self.backbone.spec}`",
            "extractor": f"{self.extractor.name}, blocks {list(self.extractor.blocks)}, "
            f"noise steps {list(self.extractor.noise_steps)}",
            "head": f"{self.head.name}, {self.probe.trainable_parameters:,} trainable parameters",
            "classes": f"{len(self.classes)}",
            **{key.replace("_", " "): value for key, value in self.info.items()},
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
        """Class probabilities (B, num_classes), averaged over `draws` noises, of images (B, C, S, S) in [-1, 1].

        Every image gets the noise of index 0, so an answer does not depend on what else is asked.
        """
        index = torch.zeros(len(images), dtype=torch.long, device=images.device)
        with evaluating(self.probe):
            return torch.stack([self.probe(images, index, draw).softmax(1) for draw in range(draws)]).mean(0)


@dataclass
class SegmentationModel(SavedModel):
    """A class for every pixel."""

    task, title, tag = "segmentation", "Semantic segmentation", "image-segmentation"
    head_kind = SegmentationHeadConfig

    probe: DenseProbe
    head: SegmentationHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: SegmentationHeadConfig, num_classes: int) -> DenseProbe:
        return DenseProbe(extractor, SegmentationHead(head, extractor.shapes(head.side), num_classes))


@dataclass
class DetectionModel(SavedModel):
    """Objects with boxes and, of Mask R-CNN, masks."""

    task, title, tag, head_kind = "detection", "Detection", "object-detection", DetectionHeadConfig

    probe: DenseProbe
    head: DetectionHeadConfig

    @classmethod
    def make(cls, extractor: Extractor, head: DetectionHeadConfig, num_classes: int) -> DenseProbe:
        return DenseProbe(extractor, DetectionHead(head, extractor.shapes(head.side), num_classes))


def model_folder(folder: Path) -> Path:
    """The folder itself, or the `model/` of a run directory.

    Raises:
        DiffLensError: no model is there.
    """
    folder = folder / "model" if (folder / "model").is_dir() else folder
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DiffLensError(f"{folder} is not a difflens model: there is no {name} in it")
    return folder


def model_task(folder: Path) -> str:
    """What a saved model does: "classification", "segmentation" or "detection".

    Raises:
        DiffLensError: no model is there, or one that does something else.
    """
    path = model_folder(folder) / "config.json"
    known = [kind.task for kind in (TrainedModel, SegmentationModel, DetectionModel)]
    try:
        config = json.loads(path.read_text())
        task = config.get("task", TrainedModel.task)
    except (ValueError, AttributeError) as error:
        raise DiffLensError(f"{path} is not a difflens model's configuration: {error!r}") from error
    if task not in known:
        raise DiffLensError(f"{path} is a model of {task!r}; this version knows {', '.join(known)}")
    return str(task)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
