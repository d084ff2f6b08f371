"""Options of `difflens demo`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from difflens.configs.options import (
    BackboneOptions,
    Count,
    DataOptions,
    LogOptions,
    Range,
    ResumeOptions,
    Times,
)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(DataOptions, BackboneOptions, LogOptions, ResumeOptions):
    """Train each head on the bundled backbone and images, and write a report.

    The demo takes a few minutes on two CPU cores. It also accepts another backbone or other data.
    """

    LIMITS: ClassVar[tuple[str, ...]] = ("train_images", "test_images")

    data: str = "fashion"
    """The images and labels: any data that `probe` takes."""
    train_images: Count | None = None
    """Train on so many images, drawn by the seed: equally many of each class. None: all."""
    test_images: Count | None = None
    """Evaluate on so many images, drawn by the seed: equally many of each class. None: all."""
    effort: Annotated[float, Range(0, 1000)] = 1.0
    """Factor of the number of epochs of each head."""
    samples: Annotated[int, Range(1, 10**4)] = 36
    """Number of images to generate."""
    sampling_steps: Times = 30
    """Sampling steps for each generated image: of DDIM, or of the sampler that the backbone needs."""
