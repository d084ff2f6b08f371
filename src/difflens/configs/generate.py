"""Options of `difflens generate`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import tyro

from difflens.choices import SamplerName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Batch,
    DryRunOptions,
    PrecisionOptions,
    Range,
    ResumeOptions,
    Share,
    Times,
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DryRunOptions, PrecisionOptions, BackboneOptions, ResumeOptions):
    """Generate images with a backbone, as PNG files in a folder.

    Image k depends only on the seed and on k: the file is the same for any --n and any number of processes.
    Another --batch-size may change a pixel by one grey level. --resume continues a stopped run, and extends a
    finished one to a larger --n.
    """

    n: Annotated[int, Range(1, 10**6), MAY_CHANGE, tyro.conf.arg(aliases=("-n",))]
    """Number of images, at most a million."""
    sampler: SamplerName | None = None
    """ddpm, ddim or dpm-solver (DPM-Solver++ 2M), for variance-preserving networks; or own: the scheduler in
    the backbone's folder, as its pipeline uses it, and Euler steps for SiT and REPA. None: ddim for
    variance-preserving networks, own for others (EDM, consistency models, VE, flows). A BiGAN's generator
    needs one pass and no sampler, --steps, --eta or --image-size."""
    steps: Times | None = None
    """Steps of the sampler. None: 50 for ddim, 20 for dpm-solver, the whole schedule for ddpm. For own: the
    whole schedule for DDPM and VE, 1 for consistency models, 4 for LCM and TCD, else 50."""
    eta: Share = 0.0
    """ddim: share of the noise that each step adds, 0 (deterministic) to 1 (as ddpm)."""
    batch_size: Batch | None = None
    """Images in a batch. Batches are always full, so fewer images take as long. None: 64, or fewer for images
    of more than 32 pixels."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        yield "images are drawn from the whole network, not from its blocks", ("tap",)
