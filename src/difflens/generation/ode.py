"""Euler steps along the straight paths of networks without a scheduler of diffusers: SiT and REPA."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from difflens.backbones.base import DiffusionBackbone
from difflens.errors import DiffLensError, counted
from difflens.generation.base import DiffusionSampler
from difflens.processes.interpolant import LinearInterpolant


class OdeSampler(DiffusionSampler):
    """Euler's method on dx/dt = v(x, t), from noise to the image, in equal steps of t.

    The network predicts v, the change of x_t with its own time t (Ma et al., 2024). For SiT, t goes from 0 to
    1 and v is about x_0 - noise. For REPA, t goes from 1 to 0 and v is about noise - x_0. Where the output
    has twice the channels of x_t, SiT discards the second half.

    Args:
        backbone: a network of a `LinearInterpolant`.
        steps: number of steps, and of network calls; None: 50.
        seed, compiled: as in `DiffusionSampler`.

    Raises:
        DiffLensError: the process is no linear interpolant, or `steps` is less than 1.
    """

    name = "own"

    def __init__(
        self, backbone: DiffusionBackbone, steps: int | None = None, seed: int = 0, compiled: bool = False
    ):
        super().__init__(backbone, seed, compiled)
        if not isinstance(backbone.process, LinearInterpolant):
            raise DiffLensError(
                f"{backbone.spec} is {backbone.process.name}, and Euler's method takes linear interpolants"
            )
        self.steps = self.calls = 50 if steps is None else steps
        if self.steps < 1:
            raise DiffLensError(f"{counted(self.steps, 'sampling step')}: it takes at least 1")
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        self.times = (times.flip(0) if backbone.process.towards_noise else times).tolist()

    def _draw(self, index: Tensor, watch: Callable[[], object]) -> Tensor:
        x, dtype = self._start(index), self.backbone.dtype
        for t, following in pairwise(self.times):
            output = self.backbone.denoise(x.to(dtype), t, compiled=self.compiled)
            x = x + (following - t) * self._checked(output)[:, : self.shape[0]]
            watch()
        return x
