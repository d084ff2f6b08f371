"""Options of `difflens report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from difflens.configs.options import Range, ReadingOptions, SeedOptions


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ReadingOptions, SeedOptions):
    """One HTML report of one backbone: top-1 by head, Fréchet distance, samples, their nearest training images.

    Name what there is of it, in any order; what is not given is left out, but samples are drawn.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("runs",)
    HAS_DIRECTORY: ClassVar[bool] = False

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of pretrain, probe, demo, generate and fidelity, or a backbone; all of the same backbone."""
    out: Path | None = None
    """The HTML file. None: backbone.html in the first run directory."""
    data: str | None = None
    """Whose training images the samples are compared with. None: those of the pretrain, probe or demo run."""
    features: str | None = None
    """Measure the images of the generate run against the test images of `data` in this space, as `fidelity` does."""
    device: Literal["cpu"] | None = None
    """cpu keeps the computation off the GPU."""
    samples: Annotated[int, Range(1, 1000)] = 36
    """Images to show: the generate run's first, else drawn, of diffusion with 50 steps of DDIM."""
