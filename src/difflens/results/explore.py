"""The result of `difflens explore`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.errors import counted
from difflens.processes.base import Level
from difflens.results.base import Result, plain, skipped


@dataclass(frozen=True, kw_only=True)
class ExploreResult(Result):
    """The result of `explore`.

    Attributes:
        out: the run directory.
        images: names of the pictures.
        blocks, noise_steps: the places on the page: each block at each noise step.
        bytes: size of the page.
        agreement: the lowest agreement of a place: Spearman's rank correlation of the page's similarities
            with exact cosines, at the fifth percentile of positions.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    images: tuple[str, ...]
    blocks: tuple[int, ...]
    noise_steps: tuple[Level, ...]
    bytes: int
    agreement: float
    skipped_images: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "images": plain(self.images),
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "bytes": self.bytes,
            "agreement": self.agreement,
            "skipped_images": plain(self.skipped_images),
        }

    def summary(self) -> str:
        return (
            f"{counted(len(self.images), 'picture')}, {counted(len(self.blocks), 'block')} x "
            f"{counted(len(self.noise_steps), 'noise step')}. Similarities agree with exact cosines: rank "
            "correlation "
            f"{self.agreement:.3f} or more at nearly all positions.\n"
            f"Page ({self.bytes / 1e6:.1f} MB): {self.out / 'explore.html'}"
        )

    def left_out(self) -> str:
        return skipped(self.skipped_images)
