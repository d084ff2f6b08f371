"""Options of `difflens cka`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.choices import OnBadImage, Precision, ScheduleName
from difflens.errors import DiffLensError, require


@dataclass(frozen=True, kw_only=True)
class CkaConfig:
    """Compare representations by linear CKA: block by block, noise step by noise step, pooling by pooling, model by
    model.

    Reads training images without their labels. With several noise steps, an image has other noise at each.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, or random: before any of them."""
    other: str | None = None
    """A second backbone, whose blocks are compared with the first one's."""
    data: str = "fashion"
    """Any data that `pretrain` takes; labels are not needed."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read at; several are compared with each other. None: the backbone's."""
    blocks: tuple[int, ...] | None = None
    """Blocks to compare. None: all."""
    pool: tuple[int, ...] = (16,)
    """Sides that larger maps are average-pooled to, 0 for none; several are compared with each other, and the first
    serves everywhere else."""
    other_noise_step: int | None = None
    """Of the second backbone. None: its own."""
    limit: int = 2000
    """Compare on at most so many images, drawn at random: as many as make minibatches of one size."""
    seed: int = 0
    """Of the noise and of the choice of images."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the (first) backbone was trained on."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""

    def check(self) -> None:
        """DiffLensError for a value that cannot be right."""
        require(
            seed=(self.seed, 0, 2**31), workers=(self.workers, 0, None), image_size=(self.image_size, 1, None),
            num_head_channels=(self.num_head_channels, 1, None),
        )  # fmt: skip
        if not self.pool or min(self.pool) < 0:
            raise DiffLensError("--pool takes sides in pixels, and 0 for maps that are not pooled")
        if self.other_noise_step is not None and self.other is None:
            raise DiffLensError("--other-noise-step is for a second backbone: name it with --other")
