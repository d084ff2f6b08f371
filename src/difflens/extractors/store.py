"""The feature store: extracted features on disk, in safetensors shards that are memory-mapped.

    manifest.json                  the settings: backbone, blocks, noise steps, seed, pooling, data
    SPLIT/images.csv               name, label and noise index of each image of the split
    SPLIT/t00020-00003.safetensors one noise step of consecutive images: a tensor a block, and their rows
    SPLIT/t0.1-00003.safetensors   the same at a level that is no whole step
    SPLIT/latents-00003.safetensors float32 latents of these images and their rows; none for pixel networks
    checksums.sha256               checksums of the files above when all exist, for `sha256sum --check`
    .checksums-0.partial           until then, checksums of the files that process 0 has written

A file is written atomically, and its bytes do not depend on the process that writes it; on a CPU they can
depend on the number of threads. Latents serve noise
steps that are added later, which need neither the images nor the autoencoder. Opening a store reads sizes and
headers; `FeatureStore.verify` and `difflens extract --resume` read all and compare checksums.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from difflens.errors import DiffLensError, expanded, listing
from difflens.extractors.cache import READ_BATCH, FeatureCache
from difflens.extractors.latents import Latents
from difflens.processes.base import Level, level_name
from difflens.run.files import checksum, write_bytes
from difflens.run.text import csv_rows, csv_text, on_disk

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.sha256"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""The types of stored features, by name."""
_IMAGES = "images.csv"
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_JOURNAL = ".checksums-{}.partial"
_THREADS = 4
_VERSION = 1


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
    dtype: str
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

    @property
    def total_bytes(self) -> int:
        """The predicted size of all shards, in bytes."""
        return sum(self.bytes_of(shard, len(self.noise_steps), latents=True) for shard in self.shards)


def write_shard(path: Path, rows: Tensor, maps: Mapping[int, Tensor]) -> str:
    """Write one noise step of a shard atomically, and return its SHA-256 as a hex digest.

    Args:
        rows: (N,) long: positions in the split.
        maps: (N, C, H, W) by block.
    """
    return _write(path, {"rows": rows, **{_name(block): maps[block].contiguous() for block in sorted(maps)}})


def write_latents(path: Path, latents: Latents) -> str:
    """Write the readable latents of a shard atomically, and return the file's SHA-256 as a hex digest."""
    there = latents.readable
    return _write(path, {"rows": latents.rows[there], "latents": latents.values[there]})


def read_latents(path: Path, latents: Latents) -> None:
    """Complete the latents of a shard from its file, and raise DiffLensError if it is damaged."""
    tensors = _read(path, ["rows", "latents"])
    latents.keep(tensors["rows"], tensors["latents"])
    latents.complete = True


def record_checksum(folder: Path, process: int, name: str, digest: str) -> None:
    """Note the checksum of the file `name`, which the process number `process` has written."""
    with (folder / _JOURNAL.format(process)).open("a", encoding="utf-8") as file:
        file.write(f"{digest}  {name}\n")
        file.flush()
        os.fsync(file.fileno())


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the recorded checksums of a store by file, also of an unfinished store."""
    recorded = {}
    for path in (folder / CHECKSUMS, *sorted(folder.glob(_JOURNAL.format("*")))):
        with suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                digest, _, name = line.partition("  ")
                if len(digest) == 64:
                    recorded[name] = digest
    return recorded


def write_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """Write checksums.sha256 of a finished store."""
    write_bytes(
        folder / CHECKSUMS, "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()
    )
    for path in folder.glob(_JOURNAL.format("*")):
        path.unlink()


def verified(folder: Path, recorded: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Read files, and yield the name of each, and True if it has its recorded checksum."""

    def is_intact(name: str) -> bool:
        try:
            return checksum(folder / name) == recorded[name]
        except OSError:
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(recorded, pool.map(is_intact, recorded), strict=True)


def check_file(path: Path, shard: Shard, layout: Layout, latents: bool = False) -> None:
    """Raise DiffLensError if the size, the header or the rows of a shard's file are wrong; no map is read."""
    shapes = {"latents": layout.latents} if latents else {_name(b): s for b, s in layout.shapes.items()}
    dtype = "float32" if latents else layout.dtype
    with _opened(path) as file:
        rows = file.get_tensor("rows")
        parts = {name: file.get_slice(name) for name in file.keys() if name != "rows"}  # noqa: SIM118
        found = {name: (_TYPES.get(p.get_dtype()), tuple(p.get_shape())) for name, p in parts.items()}
    if found != {name: (dtype, (len(rows), *(shape or ()))) for name, shape in shapes.items()}:
        raise _damaged(path, "its tensors are not those of the store")
    first, last = int(shard.rows[0]), int(shard.rows[-1])
    if len(rows) and (rows[0] < first or rows[-1] > last or not (rows.diff() > 0).all()):
        raise _damaged(path, f"its images are not the images {first} to {last} of the split")


def write_images(folder: Path, split: ImageSplit) -> None:
    """Write SPLIT/images.csv: name, label and noise index of each image."""
    labels = [""] * len(split) if split.labels is None else split.labels.tolist()
    rows = zip(split.ids, labels, split.index.tolist(), strict=True)
    text = csv_text([("image", "label", "noise_index"), *rows])
    write_bytes(folder / split.name / _IMAGES, on_disk(text).encode())


class StoredMaps:
    """The maps of one place in a store, (N, C, H, W), which are read from the disk when they are indexed.

    `maps[rows]` reads some images, and `maps[:]` reads all.

    Attributes:
        shards: the memory-mapped tensors.
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
        """Return the maps of the images at `rows`, (M,) long, without reading them."""
        return StoredMaps(self.shards, self._chosen[rows])

    def __getitem__(self, rows: Tensor | slice | int) -> Tensor:
        chosen = self._chosen[rows]
        flat = chosen.reshape(-1)
        maps = torch.empty((len(flat), *self.shape[1:]), dtype=self.dtype)
        shard = torch.searchsorted(self._ends, flat, right=True)
        for number in shard.unique().tolist():
            entries = (shard == number).nonzero()[:, 0]
            start = int(self._ends[number - 1]) if number else 0
            maps[entries] = self.shards[number][flat[entries] - start]
        return maps.reshape(*chosen.shape, *self.shape[1:])


class FeatureStore:
    """A finished store, for reading.

    Args:
        path: the folder that `difflens extract` wrote.

    Attributes:
        manifest: the content of manifest.json.
        blocks, noise_steps: the stored places: each block at each noise step.
        splits: the names of the splits.

    Raises:
        DiffLensError: the folder is not a store, or the store is damaged or unfinished.
    """

    def __init__(self, path: Path | str):
        self.path = expanded(path)
        file = self.path / MANIFEST
        if not file.is_file():
            raise DiffLensError(f"{self.path} is not a feature store: there is no {MANIFEST} in it")
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
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
                f"{self.path} holds {self.manifest['format']} files for other programs; difflens reads "
                "stores that `difflens extract --format safetensors` wrote"
            )
        files = {shard.path(t): shard for shard in self.layout.shards for t in self.noise_steps}
        missing = [str(name) for name in files if not (self.path / name).is_file()]
        if missing:
            raise DiffLensError(
                f"{self.path} is not finished: {len(missing)} of {len(files)} shards are missing, "
                f"{missing[0]} for example; complete it with `difflens extract --resume`"
            )
        for name, shard in files.items():
            check_file(self.path / name, shard, self.layout)
        recorded = read_checksums(self.path)
        lists = [f"{split}/{_IMAGES}" for split in self.splits]
        self._refuse_damaged({name: recorded[name] for name in lists if name in recorded})
        self._images = {split: _read_images(self.path / split / _IMAGES) for split in self.splits}

    def verify(self) -> None:
        """Read all files, and compare them with their checksums.

        Raises:
            DiffLensError: a file is damaged, which the message names, or has no checksum.
        """
        recorded = read_checksums(self.path)
        shards = self.layout.shards
        names = [MANIFEST, *(f"{split}/{_IMAGES}" for split in self.splits)]
        names += [shard.path(t).as_posix() for shard in shards for t in self.noise_steps]
        names += [shard.latents_path.as_posix() for shard in shards if self.layout.latents]
        unknown = [name for name in names if name not in recorded]
        if unknown:
            raise DiffLensError(
                f"{self.path} has no checksums of {len(unknown)} of its {len(names)} files, {unknown[0]} for "
                "example: `difflens extract --resume` records them"
            )
        self._refuse_damaged({name: recorded[name] for name in names})

    def _refuse_damaged(self, recorded: Mapping[str, str]) -> None:
        """Raise DiffLensError that names the files which do not have their recorded checksums."""
        damaged = [name for name, intact in verified(self.path, recorded) if not intact]
        if damaged:
            raise _damaged(self.path, f"these files do not have their checksums: {listing(damaged)}")

    def ids(self, split: str) -> list[str]:
        """Return the names of the stored images of a split, in the order of the maps."""
        return [self._images[split][0][row] for row in self.rows(split).tolist()]

    def labels(self, split: str) -> Tensor:
        """Return (N,) long: the labels of the stored images; -1 for images without a label."""
        return self._images[split][1][self.rows(split)]

    def rows(self, split: str) -> Tensor:
        """Return (N,) long: positions in the extracted split, without the images that were skipped."""
        self._check(split)
        return torch.cat([tensors["rows"] for tensors in self._files(split, self.noise_steps[0], ["rows"])])

    def maps(self, split: str, block: int, t: Level) -> StoredMaps:
        """Return the maps, (N, C, H, W), of one block at one noise step.

        Raises:
            DiffLensError: the store has no such split or place.
        """
        self._check(split)
        self.check_places([(block, t)])
        name = _name(block)
        return StoredMaps([tensors[name] for tensors in self._files(split, t, [name])])

    def check_places(self, places: Sequence[Place]) -> None:
        """Raise DiffLensError if a place is not in the store."""
        stored = {(block, t) for block in self.blocks for t in self.noise_steps}
        missing = [place for place in places if place not in stored]
        if missing:
            block, t = missing[0]
            raise DiffLensError(
                f"{self.path} has no block {block} at noise step {t}: it holds blocks {listing(self.blocks)} "
                f"at noise steps {listing(self.noise_steps)}"
            )

    def cache(
        self,
        split: ImageSplit,
        places: Sequence[Place],
        memory_gigabytes: float = 4.0,
        side: int | None = None,
    ) -> FeatureCache:
        """Return the maps of the images of `split`, which are matched by name.

        Maps are pooled to `side` in memory. If this takes more than `memory_gigabytes`, they stay in the
        store, unpooled. Images that the store left out as unreadable are left out here too.

        Args:
            places: the places whose maps are returned.
            side: the side of the pooled maps; None: unpooled.

        Raises:
            DiffLensError: an image or a place is not in the store.
        """
        self.check_places(places)
        self._check(split.name)
        number_of = {name: k for k, name in enumerate(self._images[split.name][0])}
        names = [on_disk(name) for name in split.ids]
        absent = [name for name in names if name not in number_of]
        if absent:
            raise DiffLensError(
                f"{self.path} lacks {len(absent):,} of the {len(split):,} {split.name} images, {absent[0]} "
                "for example"
            )
        # the entry of each image in the store; -1 if it was skipped
        entry = torch.full((len(number_of),), -1)
        rows = self.rows(split.name)
        entry[rows] = torch.arange(len(rows))
        entries = entry[torch.tensor([number_of[name] for name in names])]
        stored = (entries >= 0).nonzero()[:, 0]
        maps = {place: self.maps(split.name, *place).subset(entries[stored]) for place in places}
        shapes = [pooled_shape((*values.shape[1:],), side) for values in maps.values()]
        total = sum(len(stored) * math.prod(shape) for shape in shapes) * DTYPES[self.layout.dtype].itemsize
        labels = torch.full((len(stored),), -1) if split.labels is None else split.labels[stored]
        if total > memory_gigabytes * 1e9:
            return FeatureCache(maps, labels, stored)
        return FeatureCache({place: _loaded(values, side) for place, values in maps.items()}, labels, stored)

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise DiffLensError(f"{self.path} has no split {split!r}; it has {listing(self.splits)}")

    def _files(self, split: str, t: Level, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        stored = self.noise_steps[self.noise_steps.index(t)]  # 1.0, in place of its equal 1
        for shard in self.layout.shards:
            if shard.split == split:
                yield _read(self.path / shard.path(stored), names)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file of a store atomically, and return its SHA-256 as a hex digest."""
    content = save(dict(tensors))
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Return tensors of a file of a store by name, memory-mapped; raise DiffLensError if it is damaged."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of a store, and raise any error of its format as DiffLensError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: object) -> DiffLensError:
    return DiffLensError(f"{path} is damaged ({reason}): `difflens extract --resume` makes it again")


def _name(block: int) -> str:
    """Return the name of a block's tensor in a file."""
    return f"block{block:03d}"


def _loaded(maps: StoredMaps, side: int | None) -> Tensor:
    """Read all maps into memory, pooled to `side`."""
    parts = (maps[rows] for rows in torch.arange(len(maps)).split(1024))
    return torch.cat([pool_to(part.float(), side).to(maps.dtype) for part in parts])


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


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """Return the layout that a manifest describes."""
    return Layout(
        images=dict(manifest["images"]),
        shapes={int(block): tuple(shape) for block, shape in manifest["shapes"].items()},
        noise_steps=manifest["noise_steps"],
        dtype=manifest["dtype"],
        shard_megabytes=manifest["shard_megabytes"],
        latents=tuple(manifest["latents"]) if "latents" in manifest else None,
    )


def _read_images(path: Path) -> tuple[list[str], Tensor]:
    try:
        lines = csv_rows(path.read_bytes().decode())
        labels = torch.tensor([int(line["label"] or -1) for line in lines], dtype=torch.long)
        return [line["image"] for line in lines], labels
    except (OSError, KeyError, ValueError) as error:
        raise DiffLensError(f"{path} is damaged ({error}): extract the store again") from error
