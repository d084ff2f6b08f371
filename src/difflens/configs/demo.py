"""Options of `difflens demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.errors import require


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Read the bundled backbone with every head on the bundled images, and write a report.

    Takes a few minutes on two CPU cores. A backbone or data of your own can be put in.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """Any diffusion backbone that `probe` takes."""
    data: str = "fashion"
    """Any data that `probe` takes."""
    train_images: int | None = None
    """Train on the first so many images only."""
    test_images: int | None = None
    """Evaluate on the first so many images only."""
    effort: float = 1.0
    """Multiplies the number of epochs of every head."""
    samples: int = 36
    """Images to generate."""
    sampling_steps: int = 30
    """DDIM steps."""
    seed: int = 0
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            train_images=(self.train_images, 1, None), test_images=(self.test_images, 1, None),
            effort=(self.effort, 0, None), samples=(self.samples, 1, None), seed=(self.seed, 0, 2**31),
            sampling_steps=(self.sampling_steps, 1, None),
        )  # fmt: skip
