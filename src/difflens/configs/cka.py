"""Options of `difflens cka`."""

from dataclasses import dataclass, replace

from difflens.backbones.config import BackboneConfig
from difflens.configs.options import (
    BackboneOptions,
    Count,
    DataOptions,
    DryRunOptions,
    NoiseStep,
    PlaceOptions,
    Pool,
    PrecisionOptions,
    ReadingOptions,
    RunOptions,
)
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class CkaConfig(
    DataOptions, DryRunOptions, ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, RunOptions
):
    """Compare representations by linear CKA (Kornblith et al., 2019): across blocks, noise steps, poolings
    and models.

    The command reads training images without their labels. An image has different noise at each noise step.
    """

    other: str | None = None
    """A second backbone, whose blocks are compared with those of the first. None: no second backbone."""
    data: str = "fashion"
    """The images: any data that `pretrain` takes; labels are not needed."""
    pool: tuple[Pool, ...] = (16,)
    """Sides, in cells, that larger maps are average-pooled to; 0: no pooling. Several sides are compared with
    each other, and the first is used for all other comparisons."""
    other_noise_step: NoiseStep | None = None
    """Noise level at which the second backbone is read, in the unit of its noise process. None: chosen by
    that backbone."""
    limit: Count = 2000
    """The most images to compare on, drawn by the seed. The number is reduced to minibatches of equal
    size."""

    def second(self, spec: str) -> BackboneConfig:
        """Return the configuration of the second backbone, which is read at its own side."""
        return replace(BackboneConfig.shared(self, spec), image_size=None)

    def check(self) -> None:
        if not self.pool:
            raise DiffLensError("--pool takes at least one side, or 0 for maps that are not pooled")
        if self.other_noise_step is not None and self.other is None:
            raise DiffLensError("--other-noise-step is for a second backbone: name it with --other")
