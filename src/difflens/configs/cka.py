"""Options of `difflens cka`."""

from dataclasses import dataclass

from difflens.configs.options import (
    BackboneOptions,
    Count,
    Natural,
    PlaceOptions,
    PrecisionOptions,
    ReadingOptions,
    RunOptions,
)
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class CkaConfig(ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, RunOptions):
    """Compare representations by linear CKA: block by block, noise step by noise step, pooling by pooling, model by
    model.

    Reads training images without their labels. With several noise steps, an image has other noise at each.
    """

    other: str | None = None
    """A second backbone, whose blocks are compared with the first one's."""
    data: str = "fashion"
    """Any data that `pretrain` takes; labels are not needed."""
    pool: tuple[Natural, ...] = (16,)
    """Sides that larger maps are average-pooled to, 0 for none; several are compared with each other, and the first
    serves everywhere else."""
    other_noise_step: int | None = None
    """Of the second backbone. None: its own."""
    limit: Count = 2000
    """Compare on at most so many images, drawn at random: as many as make minibatches of one size."""

    def check(self) -> None:
        if not self.pool:
            raise DiffLensError("--pool takes sides in pixels, and 0 for maps that are not pooled")
        if self.other_noise_step is not None and self.other is None:
            raise DiffLensError("--other-noise-step is for a second backbone: name it with --other")
