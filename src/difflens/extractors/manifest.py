"""manifest.json of a feature store: what is stored, its division into files, and what it was read from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import StringConstraints
from torch import Tensor

from difflens.backbones.config import BackboneConfig
from difflens.backbones.maps import MapShape
from difflens.choices import Precision, StoreFormat, StoreType
from difflens.extractors.cache import READ_BATCH
from difflens.processes.base import Level, level_name
from difflens.ranges import Count, Natural, Range, Seed, Share
from difflens.run.reading import FieldError, checked, read_json, short

MANIFEST = "manifest.json"
DTYPES: Mapping[StoreType, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""The types of stored features, by name."""
_VERSION = 1
_MOST = 64 * 2**20  # bytes; data sets have up to some ten thousand names of classes

_Shape = tuple[Count, Count, Count]
_SplitName = Annotated[str, StringConstraints(pattern=r"^[\w-]+$")]  # it names a folder


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a split, stored in one file for each noise step, and one for latents.

    Attributes:
        split: the name of the split.
        number: the number of the shard in its split, from 0.
        rows: (N,) long: positions in the split.
    """

    split: str
    number: int
    rows: Tensor

    def path(self, t: Level, suffix: str = "safetensors") -> Path:
        """Return the file of the noise step `t`, relative to the store."""
        return Path(self.split) / f"t{level_name(t)}-{self.number:05d}.{suffix}"

    @property
    def latents_path(self) -> Path:
        """The file of the latents, relative to the store."""
        return Path(self.split) / f"latents-{self.number:05d}.safetensors"


@dataclass(frozen=True)
class Layout:
    """The layout of a store: its division into files, which depends only on the stored features.

    Attributes:
        images: the number of images by split.
        shapes: (C, H, W) of the stored map of each block.
        noise_steps: the noise steps of the stored maps.
        dtype: the type of the maps, a key of `DTYPES`.
        shard_megabytes: the approximate size of a file, in megabytes.
        latents: (C, H, W) of the stored latents; None: none are stored.
    """

    images: Mapping[str, int]
    shapes: Mapping[int, MapShape]
    noise_steps: Sequence[Level]
    dtype: StoreType
    shard_megabytes: int
    latents: MapShape | None = None

    @property
    def image_bytes(self) -> int:
        """The bytes of one image at one noise step: its maps and its row."""
        values = sum(math.prod(shape) for shape in self.shapes.values())
        return values * DTYPES[self.dtype].itemsize + 8

    @property
    def latent_bytes(self) -> int:
        """The bytes of one image's latents and its row; 0 without latents."""
        return 0 if self.latents is None else 4 * math.prod(self.latents) + 8

    @property
    def shard_images(self) -> int:
        """The number of images in a full shard: whole batches, at least one."""
        largest = max(self.image_bytes, self.latent_bytes)
        batches = self.shard_megabytes * 10**6 // (largest * READ_BATCH)
        return READ_BATCH * max(1, int(batches))

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards of all splits, in order."""
        return [
            Shard(split, number, rows)
            for split, count in self.images.items()
            for number, rows in enumerate(torch.arange(count).split(self.shard_images))
        ]

    def bytes_of(self, shard: Shard, noise_steps: int, latents: bool) -> int:
        """Return the predicted size of a shard's files at so many noise steps, with or without latents.

        A file's header takes about 90 bytes of JSON for each tensor.
        """
        maps = len(shard.rows) * self.image_bytes + 80 + 90 * len(self.shapes)
        kept = len(shard.rows) * self.latent_bytes + 170 if latents and self.latents else 0
        return noise_steps * maps + kept

    def bytes_in(self, shards: Sequence[Shard]) -> int:
        """Return the predicted size of all files of `shards`, in bytes."""
        return sum(self.bytes_of(shard, len(self.noise_steps), latents=True) for shard in shards)


@dataclass(frozen=True, kw_only=True)
class StoredBackbone(BackboneConfig):
    """The backbone that a store was read from: its name and options, arithmetic and fingerprint."""

    precision: Precision
    fingerprint: str


@dataclass(frozen=True)
class StoredData:
    """The data that a store was read from: its name, its fingerprint, and the share of each class that was
    held out; None for data with a split, and in stores of versions that did not record it."""

    spec: str
    fingerprint: str
    val_fraction: Share | None = None


@dataclass(frozen=True)
class Preprocessing:
    """The images that the backbone saw: their side in pixels."""

    side: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json that difflens reads.

    Attributes:
        blocks, noise_steps: the stored places: each block at each noise step.
        shapes: (C, H, W) of the stored map of each block.
        images: the number of images by split.
        dtype: the type of the maps.
        shard_megabytes: the approximate size of a file, in megabytes.
        latents: (C, H, W) of the stored latents; None: none are stored.
        format: the format of the files.
        seed, draws: the seed of the noise, and the number of its samples that maps are averaged over.
        pool: the side, in cells, that larger maps were pooled to; 0: no pooling.
        backbone, preprocessing, data: what was read.
    """

    blocks: tuple[Count, ...]
    noise_steps: tuple[Annotated[Level, Range(0)], ...]
    shapes: Mapping[Count, _Shape]
    images: Mapping[_SplitName, Count]
    dtype: StoreType
    shard_megabytes: Annotated[int, Range(1, 10**5)]
    latents: _Shape | None = None
    format: StoreFormat
    seed: Seed
    draws: Count
    pool: Natural
    backbone: StoredBackbone
    preprocessing: Preprocessing
    data: StoredData

    @property
    def layout(self) -> Layout:
        """The division of the store into files."""
        return Layout(
            self.images, self.shapes, self.noise_steps, self.dtype, self.shard_megabytes, self.latents
        )


def read_manifest(path: Path) -> Manifest:
    """Return the content of a manifest.json.

    Raises:
        DiffLensError: the file is missing or damaged, or a field is wrong; the message names it.
    """
    return read_json(path, _manifest, _MOST)


def _manifest(content: dict[str, Any]) -> Manifest:
    version = content.get("difflens_store")
    if version != _VERSION:
        raise FieldError(
            f"difflens_store is {short(version)}, of another version of difflens: extract the store again"
        )
    manifest = checked(Manifest, content)
    for name in ("blocks", "noise_steps"):
        values = getattr(manifest, name)
        if not values or len({*values}) < len(values):
            raise FieldError(f"{name} is {short(values)}: it must name at least one, and none twice")
    if {*manifest.shapes} != {*manifest.blocks}:
        raise FieldError(f"shapes is of the blocks {short([*manifest.shapes])}, not of those in blocks")
    if not manifest.images:
        raise FieldError("images is {}: it must name at least one split")
    return manifest


def manifest_of(layout: Layout, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of manifest.json: the layout, and `identity`, the source of the features."""
    return {
        "difflens_store": _VERSION,
        "blocks": sorted(layout.shapes),
        "noise_steps": sorted(layout.noise_steps),
        "shapes": {str(block): list(shape) for block, shape in layout.shapes.items()},
        "images": dict(layout.images),
        "dtype": layout.dtype,
        "shard_megabytes": layout.shard_megabytes,
        **({} if layout.latents is None else {"latents": list(layout.latents)}),
        **identity,
    }
