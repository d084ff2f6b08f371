"""Options of `difflens generate`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from difflens.choices import SamplerName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Count,
    PrecisionOptions,
    Range,
    ResumeOptions,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(PrecisionOptions, BackboneOptions, ResumeOptions):
    """Draw images from a backbone into a folder of PNGs.

    Image k depends on the seed and on k alone: the same file for any --n and any number of processes. Another
    --batch-size may change a pixel by one grey level. A stopped run goes on with --resume, and a finished one grows
    that way to a larger --n.
    """

    n: Annotated[int, Range(1, 10**6), MAY_CHANGE, tyro.conf.arg(aliases=("-n",))]
    """How many images, at most a million."""
    sampler: SamplerName = "ddim"
    """dpm-solver is DPM-Solver++ 2M. Of a BiGAN's generator, which needs one pass, neither this nor steps nor eta."""
    steps: Count | None = None
    """Of the sampler. None: 50 for ddim, 20 for dpm-solver, the whole schedule for ddpm."""
    eta: Share = 0.0
    """Of ddim: how much noise each step adds, 0 to 1."""
    batch_size: Count | None = None
    """Images at a time. Batches are always full: fewer images cost as much. None: 64, fewer beyond 32 pixels."""
