"""Options that `difflens segment` and `difflens detect` share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from difflens.choices import Exif, OnBadAnnotation, ScheduleKind
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Batch,
    Count,
    DryRunOptions,
    ExtractorOptions,
    LogOptions,
    NonNegative,
    OptimiserOptions,
    Range,
    ResumeOptions,
    Share,
    Side,
    Width,
    Workers,
)
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class DenseConfig(
    DryRunOptions, OptimiserOptions, ExtractorOptions, BackboneOptions, LogOptions, ResumeOptions
):
    """Train a head on the maps of a backbone's blocks, and evaluate it on the validation images."""

    data: Path | None = None
    """Folder of the data set, in one of the layouts that the page on dense tasks lists."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the folder of training images, and the folder of their masks (detect: their JSON
    file)."""
    val: tuple[Path, Path] | None = None
    """Instead of --data: the folder of validation images, and the folder of their masks (detect: their JSON
    file)."""
    preset: str | None = None
    """A recipe of `difflens.presets`: paper-ade20k or paper-ade20k-single for segment, paper-coco for detect.
    None: the default recipe."""
    side: Side | None = None
    """Side of the squares that the network reads, in pixels. None: the side that the backbone was trained
    on."""
    width: Width | None = None
    """Channels of the head. None: 256 for maps of 512 channels and more, else 64."""
    mix: bool = False
    """Add the maps of a stride, of several blocks or noise steps, with learned weights, as the head mix of
    `probe` does. Without it they are concatenated."""
    accumulate: Batch = 1
    """Micro-batches that a step is divided into. More of them take less memory. Batch normalisation and
    dropout see micro-batches, and their losses count equally, so results differ a little."""
    iterations: Count | None = None
    """Number of training steps. None: the preset's, or 2000 for segment and 3000 for detect."""
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9
    """sgd: momentum, at least 0 and below 1."""
    lr_schedule: ScheduleKind | None = None
    """Learning rate after the warm-up: poly, (1 - i/n)^0.9; step, times 0.1 at each of --step-at; cosine to
    zero; or constant. None: the preset's, or poly for segment and step for detect."""
    step_at: tuple[Share, ...] = (0.667, 0.889)
    """step: shares of the iterations, 0 to 1, at which the learning rate falls. The default is Mask R-CNN's
    schedule (He et al., 2017)."""
    scale: tuple[Annotated[float, Range(0.05, 1)], Annotated[float, Range(0.05, 20)]] | None = None
    """The smallest and the largest factor by which training images are scaled before they are cropped. None:
    the preset's, or 0.5 2 for segment and 0.8 1.25 for detect."""
    augment: Literal["none", "flip"] = "flip"
    """flip mirrors a training image with probability 1/2; none mirrors no image."""
    image_fraction: Annotated[float, Range(0.0001, 1)] | None = None
    """Train on this share of the images, above 0 and at most 1, drawn by the seed. None: all."""
    exif: Exif = "apply"
    """apply turns images upright by their EXIF orientation, and labels are drawn on upright images; ignore
    reads images as stored, and labels are drawn on the stored pixels."""
    on_bad_annotation: OnBadAnnotation = "error"
    """error stops at bad annotations and names them; skip leaves them out and counts them."""
    checkpoint_minutes: Annotated[NonNegative, MAY_CHANGE] = 5.0
    """Minutes between two checkpoints, from which --resume continues."""
    workers: Annotated[Workers | None, MAY_CHANGE] = None
    """Processes that decode images. None: chosen by the machine and the number of images."""

    @property
    def memory_advice(self) -> str:
        return (
            "divide batches with --accumulate, lower --batch-size, --side or --width, or read a frozen "
            "backbone with --precision bfloat16; others take less memory with --checkpoint-activations"
        )

    def recipe(self) -> Mapping[str, Any]:
        recipe = {
            "extractor": "frozen",
            "batch_size": 8,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "learning_rate": 1e-3,
        }
        if self.extractor == "finetuned":
            recipe |= {"learning_rate": 3e-4, "layer_decay": 0.85}
        return recipe

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.chosen("optimizer", "adamw") != "sgd":
            yield "only sgd has a momentum", ("momentum",)

    def check(self) -> None:
        super().check()
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise DiffLensError(
                f"--scale takes the smaller factor first, not {self.scale[0]:g} {self.scale[1]:g}"
            )
        if (self.data is None) == (self.train is None) or (self.train is None) != (self.val is None):
            raise DiffLensError("name the data: a folder with --data, or folders with both --train and --val")
