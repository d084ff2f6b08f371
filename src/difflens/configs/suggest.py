"""Options of `difflens suggest`."""

from dataclasses import dataclass

from difflens.configs.options import (
    BackboneOptions,
    CacheOptions,
    Count,
    DataOptions,
    PlaceOptions,
    PrecisionOptions,
    ReadingOptions,
    RunOptions,
    Side,
)


@dataclass(frozen=True, kw_only=True)
class SuggestConfig(
    DataOptions, CacheOptions, ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, RunOptions
):
    """Suggest a block and a noise step to read, without labels.

    Statistics of the features of some training images stand in for accuracies: rank, agreement of two noise
    draws, high frequencies, and similarity of neighbouring blocks. `sweep` measures accuracies.
    """

    data: str = "fashion"
    """The images: any data that `pretrain` takes; labels are not needed."""
    limit: Count = 125
    """The most images to read, drawn by the seed; each is read with two noise draws at each noise step."""
    pool: Side = 2
    """Side, in cells, that maps are average-pooled to, as `sweep` does. The share of high frequencies is that
    of whole maps."""
