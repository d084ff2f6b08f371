"""Options of `difflens sweep`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.choices import ClassifierName, OnBadImage, Precision, ScheduleName
from difflens.errors import DiffLensError, require

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Measure how well each block at each noise step classifies, and recommend where to read.

    Trains on four fifths of some training images and judges on the others; the test split is not touched. Noise steps
    may be added to a finished sweep with --resume, which measures the new ones only.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, or random: before any of them."""
    data: str = "fashion"
    """Any data that `probe` takes."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to look at; None: six, from 0.5 % to 40 % of the schedule."""
    blocks: tuple[int, ...] | None = None
    """Blocks to look at; None: all."""
    classifiers: tuple[ClassifierName, ...] = ("ridge",)
    """The first one decides; ridge is in closed form."""
    budget: tuple[str, ...] = ("5000",)
    """At most so many images, and at most so much time: 5000, 90s, 10m, 1h, or both, as in 5000 10m."""
    pool: int = 2
    """Side that maps are average-pooled to."""
    seed: int = 0
    """Of the noise and of the choice of images."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic."""
    cache_gigabytes: float = 4.0
    """Features of one noise step beyond this lie in a file in the run directory, not in memory."""
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
    resume: bool = False
    """Go on with the sweep in `out`, or add noise steps to it."""

    def check(self) -> None:
        """DiffLensError for a value that cannot be right."""
        require(
            pool=(self.pool, 1, None), seed=(self.seed, 0, 2**31), workers=(self.workers, 0, None),
            cache_gigabytes=(self.cache_gigabytes, 0, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None),
        )  # fmt: skip
        if not self.classifiers:
            raise DiffLensError("no classifier asked for: --classifiers takes ridge, logistic and knn")
        self.limits()

    def limits(self) -> tuple[int | None, float | None]:
        """What `budget` means: images, and seconds; None for no limit."""
        images, seconds = None, None
        for word in self.budget:
            number, unit = (word[:-1], word[-1]) if word[-1:] in _UNITS else (word, "")
            try:
                value = float(number) * _UNITS[unit] if unit else float(int(number))
            except ValueError:
                value = -1.0
            if not 0 < value < math.inf:
                raise DiffLensError(
                    f"--budget takes a number of images or a time such as 90s, 10m or 1h, not {word!r}"
                )
            if unit:
                seconds = value
            else:
                images = int(value)
        return images, seconds
