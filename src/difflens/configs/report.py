"""Options of `difflens report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from difflens.configs.options import DataOptions, Range, ReadingOptions, SeedOptions


@dataclass(frozen=True, kw_only=True)
class ReportConfig(DataOptions, ReadingOptions, SeedOptions):
    """Write an HTML report of one backbone: top-1 by head, Fréchet distance, generated samples, memorisation
    check.

    Give its run directories in any order. A section without a run says that none was given; samples are
    generated if there are none.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("runs",)
    HAS_DIRECTORY: ClassVar[bool] = False

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of pretrain, probe, demo, generate and fidelity, or a backbone; all of the same
    backbone."""
    out: Path | None = None
    """The HTML file. None: backbone.html in the first run directory."""
    data: str | None = None
    """The data whose training images the samples are compared with. None: that of the pretrain, probe or demo
    run."""
    features: str | None = None
    """Feature space, as for `fidelity`, in which the images of the generate run are measured against the test
    images of --data. None: no measurement."""
    device: Literal["cpu"] | None = None
    """cpu keeps the computation off the GPU. None: a GPU if there is one."""
    samples: Annotated[int, Range(1, 1000)] = 36
    """Number of images to show: the first ones of the generate run, or else new ones, with 50 steps of DDIM
    for a diffusion model."""
