"""Segmentation metrics from a confusion matrix of pixels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from difflens.errors import DiffLensError


@dataclass(frozen=True)
class SegmentationEvaluation:
    """Pixels of a test split by true class (rows) and predicted class (columns), (K, K) long."""

    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union by class; None for a class that is neither there nor predicted."""
        counts = self.confusion.double()
        intersection = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - intersection
        shares = (intersection / union).tolist()
        return {
            name: None if not area else share
            for name, share, area in zip(self.classes, shares, union.tolist(), strict=True)
        }

    def metrics(self) -> dict[str, Any]:
        """ "miou" over the classes that are there or predicted, "pixel_accuracy", "mean_accuracy" over those that are
        there, "iou" by class; all in [0, 1], of pixels with a class, of which there are "pixels"."""
        counts = self.confusion.double()
        known = [value for value in self.iou.values() if value is not None]
        there = counts.sum(1) > 0
        if not there.any():
            raise DiffLensError(
                "no pixel of the validation images has a class, so there is nothing to measure"
            )
        return {
            "miou": sum(known) / len(known),
            "pixel_accuracy": float(counts.diagonal().sum() / counts.sum()),
            "mean_accuracy": float((counts.diagonal()[there] / counts.sum(1)[there]).mean()),
            "iou": self.iou,
            "pixels": int(counts.sum()),
        }


def confusion_matrix(predicted: Tensor, true: Tensor, classes: int, ignored: int = 255) -> Tensor:
    """Pixels by true class (rows) and predicted class (columns), (K, K) long.

    Args:
        predicted, true: classes of pixels, of the same shape.
        classes: how many there are.
        ignored: the true value of pixels that have no class and are not counted.
    """
    return multiclass_confusion_matrix(predicted.long(), true.long(), classes, ignore_index=ignored)
