"""Options of `difflens extract`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

from difflens.choices import SplitName, StoreFormat, StoreType
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Count,
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
class ExtractConfig(ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, ResumeOptions):
    """Write the features of a data set at chosen blocks and noise steps into a folder.

    --resume continues a stopped extraction, which ends with the same bytes. It can also add noise steps to a
    finished one. `difflens probe --store` trains heads on the result. Parts of one store, extracted by runs
    that never meet, are put together by --merge.
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

    part: tuple[Count, Count] | None = None
    """Part of the store to extract, as in `--part 1 2` and `--part 2 2`, which need not run side by side.
    --merge makes one store of all parts. None: all."""
    merge: Annotated[tuple[str, ...] | None, MAY_CHANGE] = None
    """Make one store, --out, of these parts. Nothing is read but the parts."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.merge is not None:
            others = {field.name for field in fields(self)} - {"merge", "out"}
            yield "--merge copies what was extracted and reads no images", sorted(others)

    def check(self) -> None:
        if self.part and self.part[0] > self.part[1]:
            raise DiffLensError(f"--part {self.part[0]} {self.part[1]}: there are only {self.part[1]} parts")
        if not self.splits:
            raise DiffLensError("there is no split to read: --splits takes train, test or both")
        if self.unlabelled and self.splits != _SPLITS:
            raise DiffLensError("--unlabelled reads all images as one split: leave out --splits")
        if self.format == "parquet" and self.dtype == "bfloat16":
            raise DiffLensError("parquet has no type bfloat16: use --dtype float16 or float32")
