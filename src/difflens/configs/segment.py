"""Options of `difflens segment`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from difflens import presets
from difflens.choices import SegmentationHeadName
from difflens.configs.dense import DenseConfig
from difflens.configs.options import Range
from difflens.errors import DiffLensError

_RECIPE: dict[str, Any] = {"iterations": 2000, "lr_schedule": "poly", "scale": (0.5, 2.0)}

# at UPerNet's learning rate the training loss of a single layer falls slowly (on scenes)
_LINEAR: dict[str, Any] = {"learning_rate": 1e-2}


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Train a segmentation head on diffusion features, and evaluate it once on the validation images."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.SEGMENT

    head: SegmentationHeadName = "upernet"
    """upernet, or linear: one 1x1 convolution."""
    classes: Path | None = None
    """With --train and --val: a text file with the names of the classes, one a line. None: the class list of
    --data."""
    ignore: tuple[Annotated[int, Range(0, 255)], ...] | None = None
    """Values of the masks that are no class, as 11 is in CamVid. None: 0 and 255 for ADE20K, 255 for other
    layouts."""
    eval_scales: tuple[Annotated[float, Range(0.1, 10)], ...] = (1.0,)
    """Scales of each image in the evaluation, over which probabilities are averaged. The standard multi-scale
    evaluation is 0.5 0.75 1 1.25 1.5 1.75."""
    eval_flip: bool = False
    """Average probabilities over each image and its mirror image in the evaluation."""

    def recipe(self) -> Mapping[str, Any]:
        linear = _LINEAR if self.head == "linear" and self.extractor != "finetuned" else {}
        return {**super().recipe(), **_RECIPE, **linear, **presets.SEGMENT.get(self.preset or "", {})}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.head == "linear" and not self.mix:
            yield "the linear head does not read this option", ("width",)
        if self.chosen("lr_schedule", "poly") != "step":
            yield "the learning rate falls in steps with --lr-schedule step only", ("step_at",)

    def check(self) -> None:
        super().check()
        if not self.eval_scales:
            raise DiffLensError("--eval-scales takes at least one scale")
        if (self.train is None) != (self.classes is None):
            raise DiffLensError("--train and --val go with --classes, the list of classes")
