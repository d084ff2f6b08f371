"""Options of `difflens detect`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from difflens import presets
from difflens.choices import DetectionHeadName
from difflens.configs.dense import DenseConfig
from difflens.configs.options import Range

_RECIPE: dict[str, Any] = {"iterations": 3000, "lr_schedule": "step", "scale": (0.8, 1.25), "proposals": 256}


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DenseConfig):
    """Train Mask R-CNN or Faster R-CNN on diffusion features, and evaluate it once on the validation
    images."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.DETECT

    head: DetectionHeadName | None = None
    """mask-rcnn, or faster-rcnn for boxes alone. None: mask-rcnn if the data has masks, else faster-rcnn."""
    proposals: Annotated[int, Range(4, 10**5)] | None = None
    """Number of region proposals in an image. None: the preset's, or 256."""

    def recipe(self) -> Mapping[str, Any]:
        return {**super().recipe(), **_RECIPE, **presets.DETECT.get(self.preset or "", {})}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.chosen("lr_schedule", "step") != "step":
            yield "the learning rate falls in steps with --lr-schedule step only", ("step_at",)
