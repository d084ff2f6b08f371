"""Options of `difflens explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.choices import OnBadImage, ScheduleName
from difflens.errors import require


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Show a backbone's features as pictures, and with --run where the head of a probe looks.

    Principal components of maps over noise steps and nearest neighbours, for a few test images or your own; of an
    attention head or DifFormer its attention, of a linear head which blocks its weights use.
    """

    out: Path
    """Run directory."""
    backbone: str | None = None
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, or random: before any of them. None: the
    run's, or fashion."""
    run: Path | None = None
    """Run directory, or model/ folder, of a probe with a linear or attention head or DifFormer."""
    data: str | None = None
    """Any data that `probe` takes. None: the run's, or fashion."""
    images: tuple[Path, ...] = ()
    """Image files or folders to show. None: test images, one of each class in turn."""
    count: int = 4
    """Show so many images."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps of the principal components. None: five, from 0.5 % to 40 % of the schedule."""
    blocks: tuple[int, ...] | None = None
    """Blocks of the principal components. None: at most seven, from the first to the last."""
    block: int | None = None
    """Where neighbours are near. None: the backbone's."""
    noise_step: int | None = None
    """Where neighbours are near. None: the backbone's."""
    pool: int = 2
    """Side that maps are pooled to before neighbours are looked for."""
    neighbours: int = 6
    """Show so many neighbours of an image."""
    limit: int = 2000
    """Look for neighbours among so many training images, and measure heads on at most so many test images."""
    seed: int = 0
    """Of the noise and of the choice of images."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            count=(self.count, 1, 64), pool=(self.pool, 1, None), neighbours=(self.neighbours, 1, 12),
            limit=(self.limit, 1, None), seed=(self.seed, 0, 2**31), workers=(self.workers, 0, None),
            num_head_channels=(self.num_head_channels, 1, None), image_size=(self.image_size, 1, None),
        )  # fmt: skip
