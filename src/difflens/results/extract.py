"""The results of `difflens extract`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from difflens.errors import counted
from difflens.ranges import Natural
from difflens.results.base import Result, fields_in, plain, skipped


@dataclass(frozen=True, kw_only=True)
class ExtractResult(Result):
    """The result of `extract`.

    Attributes:
        out: folder of the store.
        images: number of images by split.
        predicted_bytes, bytes: predicted and actual size of the shards.
        shards: number of files that hold features.
        skipped: number of images that could not be read and are not in the store.
        sha256: digest of checksums.sha256, and so of the whole store.
        images_per_second: speed of this call; not in metrics.json.
        skipped_images: a line for each image that this call could not read; not in metrics.json.
    """

    out: Path
    images: Mapping[str, Natural]
    predicted_bytes: Natural
    bytes: Natural
    shards: Natural
    skipped: Natural
    sha256: str
    images_per_second: float
    skipped_images: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        keys = ("images", "predicted_bytes", "bytes", "shards", "skipped", "sha256")
        return {key: plain(getattr(self, key)) for key in keys}

    @classmethod
    def from_metrics(
        cls,
        metrics: Mapping[str, Any],
        out: Path,
        images_per_second: float = 0.0,
        skipped_images: tuple[str, ...] = (),
    ) -> Self:
        """Read what `metrics` wrote into the store `out`."""
        values = fields_in(cls, metrics, "out", "images_per_second", "skipped_images")
        return cls(**values, out=out, images_per_second=images_per_second, skipped_images=skipped_images)

    def summary(self) -> str:
        rate = f"{self.images_per_second:.0f} images/s, " if self.images_per_second else ""
        return (
            f"{counted(self.bytes, 'byte')} in {counted(self.shards, 'shard')}, {rate}"
            f"SHA-256 of all {self.sha256[:16]}…\nStore: {self.out}"
        )

    def left_out(self) -> str:
        return skipped(self.skipped_images)


@dataclass(frozen=True, kw_only=True)
class VectorsResult(Result):
    """The result of `extract` where it writes a file of vectors.

    Attributes:
        out: the file.
        names: the file with the names of the images: `out` itself, or the one beside an .npy file.
        images: the number of vectors.
        features: the size of a vector.
        places: in words, the blocks and noise steps whose means it joins.
        images_per_second: the speed of the reading.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    names: Path
    images: Natural
    features: Natural
    places: str
    images_per_second: float
    skipped_images: tuple[str, ...]

    def summary(self) -> str:
        beside = "" if self.names == self.out else f", names in {self.names}"
        return (
            f"{counted(self.images, 'vector')} of {counted(self.features, 'number')}, {self.places}, "
            f"{self.images_per_second:.0f} images/s\nVectors: {self.out}{beside}"
        )

    def left_out(self) -> str:
        return skipped(self.skipped_images)
