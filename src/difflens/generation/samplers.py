"""Drawing images from any backbone that generates: the choice of the sampler, and `sample`."""

from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.choices import SamplerName
from difflens.errors import DiffLensError, require
from difflens.generation.base import Sampler, refuse_eta
from difflens.generation.ode import OdeSampler
from difflens.generation.one_pass import OnePassSampler
from difflens.generation.respaced import RespacedSampler
from difflens.generation.scheduler import SchedulerSampler
from difflens.processes.clean import Clean
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.variance_preserving import VariancePreserving


def make_sampler(
    backbone: Backbone,
    name: SamplerName | None = None,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    compiled: bool = False,
) -> Sampler:
    """Return the sampler for `backbone`.

    Args:
        backbone: a backbone that `generates`.
        name: ddpm, ddim or dpm-solver, see `RespacedSampler`; or own, the folder's own scheduler, see
            `SchedulerSampler`, or Euler steps for SiT and REPA, see `OdeSampler`. None: ddim for a
            variance-preserving process, else own.
        steps: number of steps; None: the sampler's default.
        eta: share of the noise that each step of ddim adds, in [0, 1].
        seed: seed of all noise.
        compiled: run the network compiled, as in `Extractor.compiled`.

    Raises:
        DiffLensError: the backbone does not generate; the sampler cannot draw from it; an option is out of
            range or has no effect; or options of a sampler are given for a backbone that needs none.
    """
    require(eta=(eta, 0, 1))
    if isinstance(backbone, BiGANBackbone):
        if steps is not None or name is not None or eta:
            raise DiffLensError(
                f"{backbone.spec} makes an image in one pass: leave out --sampler, --steps and --eta"
            )
        side = backbone.generator.config.side
        if backbone.image_size != side:
            raise DiffLensError(
                f"the generator of {backbone.spec} draws images of side {side} alone: leave out --image-size "
                f"{backbone.image_size}"
            )
        return OnePassSampler(backbone, seed)
    if not isinstance(backbone, DiffusionBackbone):
        raise DiffLensError(f"{backbone.spec} cannot generate: it is no diffusion network")
    process = backbone.process
    if isinstance(process, Clean):
        raise DiffLensError(f"{backbone.spec} cannot generate: it was distilled to read clean images")
    chosen = name or ("ddim" if isinstance(process, VariancePreserving) else "own")
    if chosen not in get_args(SamplerName):
        raise DiffLensError(f"no sampler {chosen!r}; there are {', '.join(get_args(SamplerName))}")
    if chosen != "own":
        return RespacedSampler(backbone, chosen, steps, eta, seed, compiled)
    refuse_eta(eta, chosen)
    if isinstance(process, LinearInterpolant) and not process.config:
        return OdeSampler(backbone, steps, seed, compiled)
    return SchedulerSampler(backbone, steps, seed, compiled)


def sample(
    backbone: Backbone,
    count: int,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    sampler: SamplerName | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Generate images, (count, C, H, W) float32 in [-1, 1], on the CPU.

    Image k depends on (seed, k) alone, except for its last bits: not on `count` or `batch_size`.

    Args:
        backbone: a backbone that `generates`.
        count: number of images.
        batch_size: images that are generated at a time.
        sampler: ddpm, ddim, dpm-solver or own. None: ddim for a variance-preserving process, else own.
        steps, seed, eta: as in `make_sampler`.

    Raises:
        DiffLensError: as in `make_sampler`; `count` or `batch_size` is less than 1, or a number is not whole.
    """
    for name, value in {"count": count, "batch_size": batch_size, "steps": steps}.items():
        if value is not None and not isinstance(value, Integral):
            raise DiffLensError(f"{name} is {value!r}: it must be a whole number")
    require(count=(count, 1, None), batch_size=(batch_size, 1, None))
    draw = make_sampler(backbone, sampler, steps, eta, seed)
    numbers = torch.arange(count, device=backbone.device)
    return torch.cat([draw(index).cpu() for index in numbers.split(batch_size)])
