"""The result of `difflens generate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from difflens.results.base import Result, known


@dataclass(frozen=True, kw_only=True)
class GenerateResult(Result):
    """What `generate` returns.

    Attributes:
        out: the run directory; images/ holds the images, grid.png shows the first of them.
        images: how many there are.
        sampler: its name; "one pass" for a generator that needs no steps.
        steps: of the sampler.
        images_per_second: of this call; not in metrics.json.
    """

    out: Path
    images: int
    sampler: str
    steps: int
    images_per_second: float

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {"images": self.images, "sampler": self.sampler, "steps": self.steps}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path, images_per_second: float = 0.0) -> Self:
        """What `metrics` wrote into the run directory `out`."""
        return cls(**known(cls, metrics), out=out, images_per_second=images_per_second)

    def summary(self) -> str:
        return (
            f"{self.images:,} images ({self.sampler}, {self.steps:,} steps), "
            f"{self.images_per_second:.3g} images/s\n"
            f"Images: {self.out / 'images'}, grid: {self.out / 'grid.png'}"
        )
