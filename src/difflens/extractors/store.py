"""Extracted features on disk: safetensors shards that are read as memory-mapped tensors.

    manifest.json                  what was read and how: backbone, blocks, noise steps, seed, pooling, data
    SPLIT/images.csv               name, label and noise index of each image of the split
    SPLIT/t00020-00003.safetensors one noise step of consecutive images: a tensor a block, and the images' rows
    checksums.sha256               of every file above, once all are there (`sha256sum --check` reads it)

A shard appears whole or not at all, and holds the same bytes whoever wrote it.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from difflens.backbones.maps import MapShape, Place, pool_to, pooled_shape
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, listing
from difflens.extractors.cache import READ_BATCH, FeatureCache
from difflens.run.files import write_bytes

MANIFEST = "manifest.json"


CHECKSUMS = "checksums.sha256"


DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


_IMAGES = "images.csv"


_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a split, in one file a noise step.

    Attributes:
        split: its name.
        number: from 0.
        rows: positions in the split, (N,) long.
    """

    split: str
    number: int
    rows: Tensor

    def path(self, t: int, suffix: str = "safetensors") -> Path:
        """The file, relative to the store."""
        return Path(self.split) / f"t{t:05d}-{self.number:05d}.{suffix}"


@dataclass(frozen=True)
class Layout:
    """How a store is cut into files, which depends on what is stored and on nothing else.

    Attributes:
        images: how many each split has.
        shapes: (C, H, W) of each block's stored map.
        noise_steps: stored for every image.
        dtype: a key of `DTYPES`.
        shard_megabytes: about how large a file is.
    """

    images: Mapping[str, int]
    shapes: Mapping[int, MapShape]
    noise_steps: Sequence[int]
    dtype: str
    shard_megabytes: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image at one noise step: its maps and its row."""
        values = sum(math.prod(shape) for shape in self.shapes.values())
        return values * DTYPES[self.dtype].itemsize + 8

    @property
    def shard_images(self) -> int:
        """Images of a full shard: whole batches, at least one."""
        batches = self.shard_megabytes * 10**6 // (self.image_bytes * READ_BATCH)
        return READ_BATCH * max(1, int(batches))

    @cached_property
    def shards(self) -> list[Shard]:
        return [
            Shard(split, number, rows)
            for split, count in self.images.items()
            for number, rows in enumerate(torch.arange(count).split(self.shard_images))
        ]

    @property
    def file_bytes(self) -> int:
        """Bytes of a file besides its images: safetensors' header, whose JSON takes about so much a tensor."""
        return 80 + 90 * len(self.shapes)

    def bytes_of(self, shard: Shard, noise_steps: int) -> int:
        """Predicted size of a shard's files at so many noise steps."""
        return noise_steps * (len(shard.rows) * self.image_bytes + self.file_bytes)

    @property
    def total_bytes(self) -> int:
        """Predicted size of all shards."""
        return sum(self.bytes_of(shard, len(self.noise_steps)) for shard in self.shards)


def write_shard(path: Path, rows: Tensor, maps: Mapping[int, Tensor]) -> str:
    """Write one file of a store, all of it or nothing, and return its SHA-256.

    Args:
        rows: positions in the split, (N,) long.
        maps: (N, C, H, W) by block.
    """
    content = save(
        {"rows": rows, **{f"block{block:03d}": maps[block].contiguous() for block in sorted(maps)}}
    )
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def write_images(folder: Path, split: ImageSplit) -> None:
    """Write SPLIT/images.csv: what a store says of its images."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "noise_index"])
    labels = [""] * len(split) if split.labels is None else split.labels.tolist()
    writer.writerows(zip(split.ids, labels, split.index.tolist(), strict=True))
    write_bytes(folder / split.name / _IMAGES, text.getvalue().encode())


class StoredMaps:
    """The maps of one block at one noise step: like a tensor (N, C, H, W) that stays on the disk.

    `maps[rows]` reads some images, `maps[:]` all of them; `maps.shards` are the memory-mapped tensors themselves.
    """

    def __init__(self, shards: Sequence[Tensor], chosen: Tensor | None = None):
        self.shards = tuple(shards)
        self._ends = torch.tensor([len(shard) for shard in self.shards]).cumsum(0)
        self._chosen = torch.arange(int(self._ends[-1])) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.shards[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.shards[0].dtype

    def subset(self, rows: Tensor) -> "StoredMaps":
        """Only the images at `rows`, (M,) long, without reading them."""
        return StoredMaps(self.shards, self._chosen[rows])

    def __getitem__(self, rows: Tensor | slice | int) -> Tensor:
        chosen = self._chosen[rows]
        wanted = chosen.reshape(-1)
        found = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        shard = torch.searchsorted(self._ends, wanted, right=True)
        for number in shard.unique().tolist():
            here = (shard == number).nonzero()[:, 0]
            start = int(self._ends[number - 1]) if number else 0
            found[here] = self.shards[number][wanted[here] - start]
        return found.reshape(*chosen.shape, *self.shape[1:])


class FeatureStore:
    """A finished store, for reading.

    Args:
        path: the folder that `difflens extract` wrote.

    Attributes:
        manifest: manifest.json.
        blocks, noise_steps: what is there, every block at every noise step.
        splits: their names.

    Raises:
        DiffLensError: no store is there, it is damaged, or it is not finished.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser()
        file = self.path / MANIFEST
        if not file.is_file():
            raise DiffLensError(f"{self.path} is not a feature store: there is no {MANIFEST} in it")
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text())
            if self.manifest["difflens_store"] != _VERSION:
                raise DiffLensError(
                    f"{self.path} was written by another version of difflens: extract it again"
                )
            self.blocks = tuple(self.manifest["blocks"])
            self.noise_steps = tuple(self.manifest["noise_steps"])
            self.layout = layout_of(self.manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise DiffLensError(f"{file} is not a feature store's manifest: {error!r}") from error
        self.splits = tuple(self.layout.images)
        if self.manifest["format"] != "safetensors":
            raise DiffLensError(
                f"{self.path} holds {self.manifest['format']} files for other programs; difflens reads stores that "
                "were extracted with --format safetensors"
            )
        wanted = [shard.path(t) for shard in self.layout.shards for t in self.noise_steps]
        missing = [str(each) for each in wanted if not (self.path / each).is_file()]
        if missing:
            raise DiffLensError(
                f"{self.path} is not finished: {len(missing)} of {len(wanted)} shards are missing, {missing[0]} for "
                "example; complete it with `difflens extract --resume`"
            )
        self._images = {split: _read_images(self.path / split / _IMAGES) for split in self.splits}

    def ids(self, split: str) -> list[str]:
        """The name of each image that is stored, in the order of the maps."""
        return [self._images[split][0][row] for row in self.rows(split).tolist()]

    def labels(self, split: str) -> Tensor:
        """(N,) long; -1 where there are none."""
        return self._images[split][1][self.rows(split)]

    def rows(self, split: str) -> Tensor:
        """Positions in the split as it was extracted, (N,) long; images that were skipped are missing."""
        self._check(split)
        return torch.cat([tensors["rows"] for tensors in self._files(split, self.noise_steps[0], ["rows"])])

    def maps(self, split: str, block: int, t: int) -> StoredMaps:
        """The maps (N, C, H, W) of one block at one noise step.

        Raises:
            DiffLensError: they are not in the store.
        """
        self._check(split)
        self.check_places([(block, t)])
        name = f"block{block:03d}"
        return StoredMaps([tensors[name] for tensors in self._files(split, t, [name])])

    def check_places(self, places: Sequence[Place]) -> None:
        """DiffLensError if a (block, noise step) is not stored."""
        stored = {(block, t) for block in self.blocks for t in self.noise_steps}
        missing = [place for place in places if place not in stored]
        if missing:
            block, t = missing[0]
            raise DiffLensError(
                f"{self.path} has no block {block} at noise step {t}: it holds blocks {listing(self.blocks)} at noise "
                f"steps {listing(self.noise_steps)}"
            )

    def cache(
        self,
        split: ImageSplit,
        places: Sequence[Place],
        memory_gigabytes: float = 4.0,
        side: int | None = None,
    ) -> FeatureCache:
        """The maps of the images of `split`, found by name.

        They are pooled to `side` and in memory, unless that takes more than is said: then they stay in the store, as
        they are. Images that the store left out as unreadable are left out here too.

        Raises:
            DiffLensError: an image or a place is not in the store.
        """
        self.check_places(places)
        self._check(split.name)
        known = {name: k for k, name in enumerate(self._images[split.name][0])}
        absent = [name for name in split.ids if name not in known]
        if absent:
            raise DiffLensError(
                f"{self.path} lacks {len(absent):,} of the {len(split):,} {split.name} images, {absent[0]} for example"
            )
        position = torch.full((len(known),), -1)
        rows = self.rows(split.name)
        position[rows] = torch.arange(len(rows))
        found = position[torch.tensor([known[name] for name in split.ids])]
        kept = (found >= 0).nonzero()[:, 0]
        maps = {place: self.maps(split.name, *place).subset(found[kept]) for place in places}
        shapes = [pooled_shape((*each.shape[1:],), side) for each in maps.values()]
        total = sum(len(kept) * math.prod(shape) for shape in shapes) * DTYPES[self.layout.dtype].itemsize
        labels = torch.full((len(kept),), -1) if split.labels is None else split.labels[kept]
        if total > memory_gigabytes * 1e9:
            return FeatureCache(maps, labels, kept)
        return FeatureCache({place: _loaded(each, side) for place, each in maps.items()}, labels, kept)

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise DiffLensError(f"{self.path} has no split {split!r}; it has {listing(self.splits)}")

    def _files(self, split: str, t: int, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        for shard in self.layout.shards:
            if shard.split == split:
                path = self.path / shard.path(t)
                try:
                    with safe_open(path, framework="pt") as file:
                        yield {name: file.get_tensor(name) for name in names}
                except (SafetensorError, OSError) as error:
                    raise DiffLensError(
                        f"{path} is damaged ({error}): delete it and run `difflens extract --resume`"
                    ) from error


def _loaded(maps: StoredMaps, side: int | None) -> Tensor:
    """All maps in memory, pooled as they are read."""
    parts = (maps[rows] for rows in torch.arange(len(maps)).split(1024))
    return torch.cat([pool_to(part.float(), side).to(maps.dtype) for part in parts])


def manifest_of(layout: Layout, identity: Mapping[str, Any]) -> dict[str, Any]:
    """manifest.json: the layout, and what the features are of."""
    return {
        "difflens_store": _VERSION,
        "blocks": sorted(layout.shapes),
        "noise_steps": sorted(layout.noise_steps),
        "shapes": {str(block): list(shape) for block, shape in layout.shapes.items()},
        "images": dict(layout.images),
        "dtype": layout.dtype,
        "shard_megabytes": layout.shard_megabytes,
        **identity,
    }


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """The layout that a manifest describes."""
    shapes = {int(block): tuple(shape) for block, shape in manifest["shapes"].items()}
    return Layout(
        dict(manifest["images"]), shapes, manifest["noise_steps"], manifest["dtype"], manifest["shard_megabytes"]
    )  # fmt: skip


def _read_images(path: Path) -> tuple[list[str], Tensor]:
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        labels = torch.tensor([int(line["label"] or -1) for line in lines], dtype=torch.long)
        return [line["image"] for line in lines], labels
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DiffLensError(f"{path} is damaged ({error}): extract the store again") from error
