"""Options of `difflens extract`."""

from dataclasses import dataclass

from difflens.choices import SplitName, StoreFormat, StoreType
from difflens.configs.options import (
    BackboneOptions,
    Count,
    Natural,
    PlaceOptions,
    PrecisionOptions,
    ReadingOptions,
    ResumeOptions,
)
from difflens.errors import DiffLensError

_SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, ResumeOptions):
    """Write the features of a data set at chosen blocks and noise steps into a folder.

    A stopped extraction goes on with --resume, and ends with the same bytes; noise steps may be added to a finished
    one that way. `difflens probe --store` trains heads on the result.
    """

    data: str = "fashion"
    """Any data that `probe` takes."""
    unlabelled: bool = False
    """Take all images of `data` as one split without labels, from any folder of images."""
    splits: tuple[SplitName, ...] = _SPLITS
    """Which splits to read."""
    pool: Natural = 0
    """Average-pool larger maps to this side; 0: keep them whole."""
    dtype: StoreType = "float16"
    """Of the stored numbers."""
    draws: Count = 1
    """Average the maps over so many noises."""
    limit: Count | None = None
    """Only the first so many training images, as for `probe`; of a single split, so many of that."""
    format: StoreFormat = "safetensors"
    """parquet is a table for other programs; difflens does not read it back."""
    shard_megabytes: Count = 128
    """About how large each file is, and so how much a stop may lose and how much memory a noise step takes."""

    def check(self) -> None:
        if not self.splits:
            raise DiffLensError("no split asked for: --splits takes train, test or both")
        if self.unlabelled and self.splits != _SPLITS:
            raise DiffLensError("--unlabelled takes all images as one split: leave out --splits")
        if self.format == "parquet" and self.dtype == "bfloat16":
            raise DiffLensError("parquet knows no bfloat16: ask for float16 or float32")
