"""The result of `difflens detect`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from difflens.errors import counted
from difflens.ranges import Natural, NonNegative, Share
from difflens.results.base import Result, bad, fields_in, plain
from difflens.run.reading import field_in

if TYPE_CHECKING:
    from difflens.models.saved import DetectionModel

# the fields of a result that metrics.json has under other names, or not at all
_ELSEWHERE = ("out", "model", "box", "mask")


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO's metrics of boxes or of masks, in [0, 1]; None where there are no such objects.

    Attributes:
        ap: average precision, the mean over IoU thresholds from 0.50 to 0.95.
        ap50, ap75: average precision at the IoU thresholds 0.50 and 0.75.
        ap_small, ap_medium, ap_large: `ap` of objects below 32 x 32 pixels, between, and above 96 x 96.
        ar: average recall with 100 detections an image.
        ap_by_class: `ap` of each class.
    """

    ap: Share | None
    ap50: Share | None
    ap75: Share | None
    ap_small: Share | None
    ap_medium: Share | None
    ap_large: Share | None
    ar: Share | None
    ap_by_class: Mapping[str, Share | None]

    def metrics(self, kind: str) -> dict[str, Any]:
        """Plain values for metrics.json, whose keys begin with "box_" or "mask_"."""
        return {f"{kind}_{key}": value for key, value in plain(self).items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], kind: str) -> Self:
        """Read what `metrics` wrote for `kind`, "box" or "mask"."""
        found = {field.name: (f"{kind}_{field.name}", field.type) for field in fields(cls)}
        return cls(**{key: field_in(metrics, name, hint) for key, (name, hint) in found.items()})


@dataclass(frozen=True, kw_only=True)
class DetectResult(Result):
    """The result of `detect`.

    Attributes:
        out: the run directory.
        model: the trained model.
        box, mask: average precision of boxes and of masks; None for masks with Faster R-CNN.
        train_images, val_images: how many were read.
        train_negatives: number of training images without objects.
        trainable_parameters: number of parameters that were trained.
        train_seconds: seconds of training.
        bad_annotations: a line for each annotation that was left out.
    """

    out: Path
    model: "DetectionModel"
    box: AveragePrecision
    mask: AveragePrecision | None
    train_images: Natural
    train_negatives: Natural
    val_images: Natural
    trainable_parameters: Natural
    iterations: Natural
    train_seconds: NonNegative
    seed: Natural
    bad_annotations: tuple[str, ...]

    @property
    def precisions(self) -> dict[str, AveragePrecision]:
        """Average precision by "box" and, where the model predicts masks, "mask"."""
        return {"box": self.box} | ({"mask": self.mask} if self.mask is not None else {})

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        figures = {
            key: value
            for kind, precision in self.precisions.items()
            for key, value in precision.metrics(kind).items()
        }
        rest = {key: plain(value) for key, value in vars(self).items() if key not in _ELSEWHERE}
        return figures | rest

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path, model: "DetectionModel") -> Self:
        """Read what `metrics` wrote into the run directory `out`."""
        mask = AveragePrecision.from_metrics(metrics, "mask") if "mask_ap" in metrics else None
        box = AveragePrecision.from_metrics(metrics, "box")
        return cls(**fields_in(cls, metrics, *_ELSEWHERE), out=out, model=model, box=box, mask=mask)

    def summary(self) -> str:
        figures = [
            f"{kind} AP {_percent(value.ap)}, AP50 {_percent(value.ap50)}, AP75 {_percent(value.ap75)}"
            for kind, value in self.precisions.items()
        ]
        return (
            f"{'; '.join(figures)} (%), {self.train_images:,} training and "
            f"{counted(self.val_images, 'validation image')}, "
            f"{counted(self.trainable_parameters, 'trainable parameter')}\nReport: "
            f"{self.out / 'report.html'}\nModel: {self.out / 'model'}\nResults: {self.out / 'results.json'}"
        )

    def left_out(self) -> str:
        return bad(self.bad_annotations)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
