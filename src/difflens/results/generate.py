"""The result of `difflens generate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from difflens.errors import counted
from difflens.ranges import Natural
from difflens.results.base import Result, fields_in


@dataclass(frozen=True, kw_only=True)
class GenerateResult(Result):
    """The result of `generate`.

    Attributes:
        out: the run directory; images/ holds the images, grid.png shows the first of them.
        images: number of images.
        sampler: its name; "one pass" for a generator that needs no steps.
        steps: number of steps of the sampler.
        images_per_second: speed of this call; not in metrics.json.
    """

    out: Path
    images: Natural
    sampler: str
    steps: Natural
    images_per_second: float

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {"images": self.images, "sampler": self.sampler, "steps": self.steps}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path, images_per_second: float = 0.0) -> Self:
        """Read what `metrics` wrote into the run directory `out`."""
        return cls(
            **fields_in(cls, metrics, "out", "images_per_second"),
            out=out,
            images_per_second=images_per_second,
        )

    def summary(self) -> str:
        return (
            f"{counted(self.images, 'image')} ({self.sampler}, {counted(self.steps, 'step')}), "
            f"{self.images_per_second:.3g} images/s\n"
            f"Images: {self.out / 'images'}, grid: {self.out / 'grid.png'}"
        )
