"""The result of `difflens segment`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from difflens.errors import counted, listing
from difflens.ranges import Natural, NonNegative, Share
from difflens.results.base import Result, bad, fields_in, plain

if TYPE_CHECKING:
    from difflens.models.saved import SegmentationModel


@dataclass(frozen=True, kw_only=True)
class SegmentResult(Result):
    """The result of `segment`.

    Attributes:
        out: the run directory.
        model: the trained model.
        miou: mean intersection over union of the classes that are present or predicted, in [0, 1].
        pixel_accuracy: share of pixels with the right class, in [0, 1].
        mean_accuracy: mean of the pixel accuracies of the classes that are present, in [0, 1].
        iou: intersection over union by class, in [0, 1]; None for a class that is neither present nor
            predicted.
        absent_classes: classes without a validation pixel; None in runs of version 0.1, which do not say.
        pixels: number of validation pixels that have a class.
        train_images, val_images: how many were read.
        trainable_parameters: number of parameters that were trained.
        train_seconds: seconds of training.
        bad_annotations: a line for each annotation that was left out.
    """

    out: Path
    model: "SegmentationModel"
    miou: Share
    pixel_accuracy: Share
    mean_accuracy: Share
    iou: Mapping[str, Share | None]
    pixels: Natural
    train_images: Natural
    val_images: Natural
    trainable_parameters: Natural
    iterations: Natural
    train_seconds: NonNegative
    seed: Natural
    bad_annotations: tuple[str, ...]
    absent_classes: tuple[str, ...] | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        without = ("out", "model", *(("absent_classes",) if self.absent_classes is None else ()))
        return {key: plain(value) for key, value in vars(self).items() if key not in without}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path, model: "SegmentationModel") -> Self:
        """Read what `metrics` wrote into the run directory `out`."""
        return cls(**fields_in(cls, metrics, "out", "model"), out=out, model=model)

    def summary(self) -> str:
        present = sum(share is not None for share in self.iou.values())
        over = f" over {present} of {counted(len(self.iou), 'class')}" if self.absent_classes else ""
        absent = f"No validation pixel: {listing(self.absent_classes)}\n" if self.absent_classes else ""
        return (
            f"mIoU {100 * self.miou:.2f} %{over}, pixel accuracy {100 * self.pixel_accuracy:.2f} %, "
            f"{self.train_images:,} training and {counted(self.val_images, 'validation image')}, "
            f"{counted(self.trainable_parameters, 'trainable parameter')}\n"
            f"{absent}Report: {self.out / 'report.html'}\nModel: {self.out / 'model'}"
        )

    def left_out(self) -> str:
        return bad(self.bad_annotations)
