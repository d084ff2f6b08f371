"""`load_model`: a trained model of any task, called on images."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from difflens.data.images import fit, pixels_of, to_float
from difflens.errors import DiffLensError, counted, expanded
from difflens.models.saved import (
    MODELS,
    DetectionModel,
    SavedModel,
    SegmentationModel,
    TrainedModel,
    model_folder,
    model_task,
)
from difflens.processes.clean import Clean
from difflens.run.reading import reason
from difflens.tasks.detection.predict import objects_in
from difflens.tasks.segmentation.predict import mask_of

_BATCH = 32
FILES = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "README.md"),
    *("*.pt", "*.pth", "*.bin", "*.yaml", "*.yml"),  # a backbone's checkpoint, and what it does not say
)
"""The files of a model that are downloaded."""

Picture = Image.Image | Path | str | Tensor
"""An image: as Pillow reads it, the path of a file, or a tensor (C, H, W), C 1 or 3: uint8, or floating-point
in [-1, 1]."""


@dataclass(frozen=True)
class Detections:
    """The objects in an image, the surest first, on the CPU.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom in pixels of the image.
        labels: (N,) long: positions in the model's `classes`.
        scores: (N,) confidence in [0, 1].
        masks: (N, H, W) bool; None of Faster R-CNN.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None


class LoadedModel:
    """A trained model that is called on images. What it says of one does not depend on the others.

    Attributes:
        saved: the model with its configuration; `saved.probe` is its network.
        task: classification, multi-label classification, segmentation or detection.
        classes: the names of the classes.
    """

    def __init__(self, saved: SavedModel):
        self.saved, self.task, self.classes = saved, saved.task, saved.classes

    def __call__(self, images: Picture | Iterable[Picture], draws: int = 1) -> Any:
        """Return what the model says of images of any sizes, as `difflens predict` does.

        Args:
            images: one image or several; a tensor (B, C, H, W) is several. See `Picture`.
            draws: the number of noise samples over which probabilities are averaged.

        Returns:
            On the CPU, of classification the probabilities, (B, K) float32, in the order of `classes`, which
            sum to 1 unless an image has several labels; of segmentation a mask for each image, (H, W) uint8
            with positions in `classes`; of detection `Detections` for each image.

        Raises:
            BadImage: an image cannot be read.
            DiffLensError: a tensor has another shape or range, or `draws` has no effect.
        """
        if draws < 1:
            raise DiffLensError(f"draws is {draws}; it must be at least 1")
        model = self.saved
        pixels = (pixels_of(image, model.exif) for image in _several(images))  # one after the other
        backbone = model.probe.extractor.backbone
        if draws > 1 and isinstance(backbone.process, Clean):
            raise DiffLensError(f"{backbone.spec} reads images without noise: leave out draws")
        if isinstance(model, DetectionModel):
            if draws > 1:
                raise DiffLensError("draws average probabilities, which objects do not have: leave it out")
            return [_detections(model, image) for image in pixels]
        if isinstance(model, SegmentationModel):
            return [mask_of(model, image, draws) for image in pixels]
        assert isinstance(model, TrainedModel)
        fitted = (fit(image, backbone.in_channels, backbone.image_size) for image in pixels)
        parts = [torch.empty(0, len(self.classes))]
        while some := list(islice(fitted, _BATCH)):
            batch = to_float(torch.stack(some).to(model.device))
            parts.append(model.probabilities(batch, draws).float().cpu())
        return torch.cat(parts)

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.task}, {counted(len(self.classes), 'class')}, {self.saved.backbone.spec!r})"
        )


def load_model(
    spec: str | Path, *, backbone: str | Path | None = None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load a model of `probe`, `segment` or `detect`, to be called on images.

    Args:
        spec: a run directory or its `model/`; or OWNER/NAME on the Hugging Face hub.
        backbone: the backbone's new location, if it has moved.
        device: the device for the network.

    Raises:
        DiffLensError: there is no such model, it is damaged, or its backbone is missing or has changed.
    """
    folder = _folder(str(spec))
    kind = MODELS[model_task(folder)]
    return LoadedModel(kind.load(folder, None if backbone is None else str(backbone), device))


def _folder(spec: str) -> Path:
    """Return the folder of a model, downloaded if it is on the hub."""
    path = expanded(spec)
    if path.exists():
        return model_folder(path)
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise DiffLensError(f"no model {spec!r}: it is no run directory here, and no OWNER/NAME on the hub")
    from huggingface_hub import snapshot_download

    try:
        return model_folder(snapshot_download(spec, allow_patterns=[*FILES]))
    except DiffLensError:
        raise
    except Exception as error:  # no network, no such repository, no permission
        raise DiffLensError(
            f"no model {spec!r}: it is no folder here, and the hub does not give it ({reason(error)})"
        ) from error


def _several(images: Picture | Iterable[Picture]) -> Iterable[Any]:
    """Return several images, also of one."""
    one = isinstance(images, str | Path | Image.Image) or (isinstance(images, Tensor) and images.ndim < 4)
    if not one and not isinstance(images, Iterable):
        raise DiffLensError(f"images are Pillow images, paths or tensors, not {type(images).__name__}")
    return [images] if one else images  # type: ignore[return-value]


def _detections(model: DetectionModel, image: Tensor) -> Detections:
    found = objects_in(model, image)
    assert found.scores is not None
    return Detections(found.boxes, found.labels - 1, found.scores, found.masks)
