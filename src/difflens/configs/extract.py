"""Options of `difflens extract`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from difflens.choices import SplitName, StoreFormat, StoreType
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Count,
    DataOptions,
    NonNegative,
    PlaceOptions,
    Pool,
    PrecisionOptions,
    Range,
    ReadingOptions,
    ResumeOptions,
    Times,
    given,
)
from difflens.errors import DiffLensError, listing

_SPLITS: tuple[SplitName, ...] = ("train", "test")


VECTOR_FILES = (".npy", ".pt", ".csv", ".parquet")
"""The suffixes of files that hold a vector for each image."""

_OTHER_FILES = (".npz", ".h5", ".hdf5", ".json", ".pkl", ".safetensors", ".tsv", ".txt", ".zip")
"""Suffixes of other files, which no folder of a store has."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(
    DataOptions, ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, ResumeOptions
):
    """Write features: a vector for each image into a file, or maps into a store, for `probe --store`.

    `extract PHOTOS --out features.npy` writes the mean of a map over its positions for each image, float32,
    and names and settings into features.json. With .pt, .csv or .parquet, the names are in the file itself.

    With a folder as --out, it is a store. --resume continues a stopped extraction, which ends with the same
    bytes. It can also add noise steps to a finished one. Parts of one store, extracted by runs that never
    meet, are put together by --merge.
    """

    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)
    POSITIONAL: ClassVar[tuple[str, ...]] = ("photos",)

    photos: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[PHOTOS]")]] = None
    """A folder of images, which are read with those of subfolders, without labels. None: those of --data."""
    out: Annotated[Path, MAY_CHANGE]
    """FILE.npy, .pt, .csv or .parquet for a vector for each image, or a folder for a store of maps. It must
    be new, unless --resume continues a store."""
    data: str | None = None
    """The images: any data that `probe` takes. None: PHOTOS, or fashion."""
    unlabelled: bool = False
    """Read the training images of --data, or all images of a folder without train/, as one split without
    labels."""
    splits: tuple[SplitName, ...] = _SPLITS
    """Splits to read: train, test or both."""
    pool: Pool = 0
    """Store: side, in cells, that larger maps are average-pooled to; 0: no pooling."""
    dtype: StoreType | None = None
    """Type of the written numbers. None: float16 in a store, float32 in a file."""
    draws: Times = 1
    """Number of noise samples that the maps are averaged over."""
    limit: Count | None = None
    """Read so many training images, or so many images of the split if a single one is read. The seed draws
    them: equally many of each class. None: all."""
    format: StoreFormat = "safetensors"
    """Store: safetensors, which `probe --store` reads; or parquet, a table for other programs, which difflens
    does not read."""
    shard_megabytes: Annotated[int, Range(1, 10**5)] = 128
    """Store: approximate size of each shard in megabytes. A larger shard takes more memory."""
    checkpoint_minutes: Annotated[NonNegative, MAY_CHANGE] = 5.0
    """Store: an unfinished shard is kept every so many minutes, from where --resume goes on."""

    part: tuple[Count, Count] | None = None
    """Store: the part to extract, as in `--part 1 2` and `--part 2 2`, which need not run side by side;
    --merge makes one store of all parts. None: all."""
    merge: Annotated[tuple[str, ...] | None, MAY_CHANGE] = None
    """Store: make one, --out, of these parts. Nothing is read but the parts."""

    @property
    def vectors(self) -> bool:
        """True if --out is a file of vectors, not a store."""
        return self.out.suffix.lower() in VECTOR_FILES

    @property
    def spec(self) -> str:
        """The images of a resolved configuration: the folder of photos, or the data."""
        return str(self.photos) if self.photos is not None else given(self.data)

    def recipe(self) -> Mapping[str, Any]:
        dtype: StoreType = "float32" if self.vectors else "float16"
        return {"dtype": dtype} if self.photos is not None else {"dtype": dtype, "data": "fashion"}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.photos is not None:
            yield "PHOTOS are the images to read", ("data", "unlabelled", "splits", "val_fraction")
        if self.vectors:
            yield "a file of vectors is written at once", ("resume", "shard_megabytes", "checkpoint_minutes")
            yield "a vector is the mean of a map over its positions", ("pool",)
            yield "the suffix of --out is the format of a file", ("format",)
            yield "parts are those of a store", ("part", "merge")
        if self.merge is not None:
            others = {field.name for field in fields(self)} - {"merge", "out"}
            yield "--merge copies what was extracted and reads no images", sorted(others)

    def check(self) -> None:
        if self.part and self.part[0] > self.part[1]:
            raise DiffLensError(
                f"--part {self.part[0]} {self.part[1]}: there is no part {self.part[0]} of {self.part[1]}"
            )
        if self.out.suffix.lower() in _OTHER_FILES:
            raise DiffLensError(
                f"--out {self.out}: files of vectors are {listing(VECTOR_FILES)}; a store is a folder"
            )
        if not self.splits:
            raise DiffLensError("there is no split to read: --splits takes train, test or both")
        if self.unlabelled and self.splits != _SPLITS:
            raise DiffLensError("--unlabelled reads all images as one split: leave out --splits")
        kind = self.out.suffix.lower().removeprefix(".") if self.vectors else self.format
        if kind in ("parquet", "npy") and self.dtype == "bfloat16":
            raise DiffLensError(f"{kind} has no type bfloat16: use --dtype float16 or float32")
