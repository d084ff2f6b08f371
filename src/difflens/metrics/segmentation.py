"""Segmentation metrics from the confusion matrix of pixels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from difflens.errors import DiffLensError


@dataclass(frozen=True)
class SegmentationEvaluation:
    """Predictions for the pixels of a test split.

    Attributes:
        confusion: (K, K) long, number of pixels by true class (rows) and predicted class (columns).
        classes: names of the classes, all of them different.
    """

    confusion: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len({*self.classes}) < len(self.classes):
            raise DiffLensError(f"two classes have one name, and figures are by name: {self.classes}")

    @property
    def iou(self) -> dict[str, float | None]:
        """Intersection over union of each class, in [0, 1]; None for a class without pixels in either."""
        counts = self.confusion.double()
        intersection = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - intersection
        shares = (intersection / union).tolist()
        return {
            name: None if not area else share
            for name, share, area in zip(self.classes, shares, union.tolist(), strict=True)
        }

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the pixels that have a class, in [0, 1].

        Returns:
            "miou", the mean over classes that are true or predicted; "pixel_accuracy"; "mean_accuracy", the
            mean over true classes; "iou" by class; "absent_classes", those without a true pixel; and
            "pixels", the number of pixels.

        Raises:
            DiffLensError: no pixel has a class.
        """
        counts = self.confusion.double()
        shares = [value for value in self.iou.values() if value is not None]
        present = counts.sum(1) > 0
        if not present.any():
            raise DiffLensError(
                "no pixel of the validation images has a class, so there is nothing to measure"
            )
        return {
            "miou": sum(shares) / len(shares),
            "pixel_accuracy": float(counts.diagonal().sum() / counts.sum()),
            "mean_accuracy": float((counts.diagonal()[present] / counts.sum(1)[present]).mean()),
            "iou": self.iou,
            "absent_classes": [name for name, here in zip(self.classes, present, strict=True) if not here],
            "pixels": int(counts.sum()),
        }
