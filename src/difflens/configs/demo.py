"""Options of `difflens demo`."""

from dataclasses import dataclass

from difflens.configs.options import BackboneOptions, Count, NonNegative, ResumeOptions


@dataclass(frozen=True, kw_only=True)
class DemoConfig(BackboneOptions, ResumeOptions):
    """Read the bundled backbone with every head on the bundled images, and write a report.

    Takes a few minutes on two CPU cores. A backbone or data of your own can be put in.
    """

    data: str = "fashion"
    """Any data that `probe` takes."""
    train_images: Count | None = None
    """Train on the first so many images only."""
    test_images: Count | None = None
    """Evaluate on the first so many images only."""
    effort: NonNegative = 1.0
    """Multiplies the number of epochs of every head."""
    samples: Count = 36
    """Images to generate."""
    sampling_steps: Count = 30
    """DDIM steps."""
