"""Options of `difflens generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflens.choices import Precision, SamplerName, ScheduleName
from difflens.errors import require


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Draw images from a backbone into a folder of PNGs.

    Image k depends on the seed and on k alone: the same file for any --n and any number of processes. Another
    --batch-size may change a pixel by one grey level. A stopped run goes on with --resume, and a finished one grows
    that way to a larger --n.
    """

    out: Path
    """Run directory; `images/` in it receives 000000.png and so on, and grid.png shows the first 64."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))]
    """How many images, at most a million."""
    backbone: str = "fashion"
    """fashion, a folder that `pretrain` wrote or in diffusers format, an OpenAI checkpoint, a hub id, or random: before
    any of them."""
    sampler: SamplerName = "ddim"
    """dpm-solver is DPM-Solver++ 2M. Of a BiGAN's generator, which needs one pass, neither this nor steps nor eta."""
    steps: int | None = None
    """Of the sampler. None: 50 for ddim, 20 for dpm-solver, the whole schedule for ddpm."""
    eta: float = 0.0
    """Of ddim: how much noise each step adds, 0 to 1."""
    batch_size: int | None = None
    """Images at a time. Batches are always full: fewer images cost as much. None: 64, fewer beyond 32 pixels."""
    seed: int = 0
    """Of all noise."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Complete the images in `out`."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            n=(self.n, 1, 10**6), steps=(self.steps, 1, None), eta=(self.eta, 0, 1), batch_size=(self.batch_size, 1, None),
            seed=(self.seed, 0, 2**31), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None),
        )  # fmt: skip
