"""Options of `difflens extract`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from difflens.choices import SplitName, StoreFormat, StoreType
from difflens.configs.options import (
    BackboneOptions,
    Count,
    DataOptions,
    PlaceOptions,
    Pool,
    PrecisionOptions,
    Range,
    ReadingOptions,
    ResumeOptions,
    Times,
)
from difflens.errors import DiffLensError

_SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(
    DataOptions, ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, ResumeOptions
):
    """Write the features of a data set at chosen blocks and noise steps into a folder.

    --resume continues a stopped extraction, which ends with the same bytes. It can also add noise steps to a
    finished one. `difflens probe --store` trains heads on the result.
    """

    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)

    data: str = "fashion"
    """The images: any data that `probe` takes."""
    unlabelled: bool = False
    """Read all images of --data as one split without labels. The data may be any folder of images."""
    splits: tuple[SplitName, ...] = _SPLITS
    """Splits to read: train, test or both."""
    pool: Pool = 0
    """Side, in cells, that larger maps are average-pooled to; 0: no pooling."""
    dtype: StoreType = "float16"
    """Type of the stored numbers."""
    draws: Times = 1
    """Number of noise samples that the maps are averaged over."""
    limit: Count | None = None
    """Read so many training images, or so many images of the split if a single one is read. The seed draws
    them: equally many of each class. None: all."""
    format: StoreFormat = "safetensors"
    """safetensors, which `probe --store` reads; or parquet, a table for other programs, which difflens does
    not read."""
    shard_megabytes: Annotated[int, Range(1, 10**5)] = 128
    """Approximate size of each file in megabytes. A stop loses at most one file; a larger file takes more
    memory."""

    def check(self) -> None:
        if not self.splits:
            raise DiffLensError("there is no split to read: --splits takes train, test or both")
        if self.unlabelled and self.splits != _SPLITS:
            raise DiffLensError("--unlabelled reads all images as one split: leave out --splits")
        if self.format == "parquet" and self.dtype == "bfloat16":
            raise DiffLensError("parquet has no type bfloat16: use --dtype float16 or float32")
