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
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from difflens.backbones.maps import Place, pool_to, pooled_shape
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted, expanded, listing, named
from difflens.extractors.cache import FeatureCache
from difflens.extractors.latents import Latents
from difflens.extractors.manifest import DTYPES, MANIFEST, Layout, Shard, read_manifest
from difflens.processes.base import Level
from difflens.run.files import checksum, write_bytes
from difflens.run.reading import check_regular, read_table, read_text, short
from difflens.run.text import csv_text, on_disk, unguarded

CHECKSUMS = "checksums.sha256"
IMAGES = "images.csv"
"""The list of a split's images, in the folder of the split."""
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_JOURNAL = ".checksums-{}.partial"
_CHECKSUM = re.compile(r"([0-9a-f]{64})  (.+)")
_LABEL = re.compile(r"|-1|[0-9]{1,9}")
_INDEX = re.compile(r"[0-9]{1,10}")
_THREADS = 4
_MOST = 2**28  # bytes; a line for each image of the largest data sets


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
    """Return the recorded checksums of a store by file, also of an unfinished store.

    Raises:
        DiffLensError: a file of checksums is damaged; the message names the line. In an unfinished store,
            a stop can leave incomplete lines, which are left out.
    """
    recorded = {}
    for path in (folder / CHECKSUMS, *sorted(folder.glob(_JOURNAL.format("*")))):
        lines = read_text(path, _MOST).removesuffix("\n").split("\n") if path.exists() else []
        for number, line in enumerate(lines, start=1):
            if found := _CHECKSUM.fullmatch(line):
                recorded[found[2]] = found[1]
            elif path.name == CHECKSUMS:
                raise DiffLensError(f"{path}, line {number}: {short(line)} is no SHA-256 and name of a file")
    return recorded


def write_checksums(folder: Path, digests: Mapping[str, str], finished: bool = True) -> None:
    """Write checksums.sha256 of a finished store, or put together what processes noted of an unfinished one.

    A run begins with the latter: its processes have other files than those of the run before, and what they
    note must count.
    """
    target = folder / (CHECKSUMS if finished else _JOURNAL.format(0))
    write_bytes(target, "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode())
    for path in {*folder.glob(_JOURNAL.format("*"))} - {target}:
        path.unlink()


def verified(folder: Path, recorded: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Read files, and yield the name of each, and True if it has its recorded checksum."""

    def is_intact(name: str) -> bool:
        try:
            check_regular(folder / name)
            return checksum(folder / name) == recorded[name]
        except (OSError, DiffLensError):
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
    rows = zip(split.ids, labels, split.noise_index.tolist(), strict=True)
    text = csv_text([("image", "label", "noise_index"), *rows])
    write_bytes(folder / split.name / IMAGES, on_disk(text).encode())


def recorded_noise(folder: Path, split: ImageSplit) -> Tensor:
    """Return the noise indices, (N,) long, that SPLIT/images.csv records, or else those of `split`.

    A store that is continued keeps them: in those of earlier versions, test images count from 0.
    """
    path = folder / split.name / IMAGES
    if not path.exists():
        return split.noise_index
    try:
        return _read_images(path, len(split))[2]
    except DiffLensError:  # it is damaged, and written again
        return split.noise_index


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
        if not (self.path / MANIFEST).exists():
            raise DiffLensError(f"{self.path} is not a feature store: there is no {MANIFEST} in it")
        self.manifest = read_manifest(self.path / MANIFEST)
        self.blocks, self.noise_steps = self.manifest.blocks, self.manifest.noise_steps
        self.layout, self.splits = self.manifest.layout, tuple(self.manifest.images)
        if self.manifest.format != "safetensors":
            raise DiffLensError(
                f"{self.path} holds {self.manifest.format} files for other programs; difflens reads "
                "stores that `difflens extract --format safetensors` wrote"
            )
        recorded = read_checksums(self.path)
        lists = [f"{split}/{IMAGES}" for split in self.splits]
        self._refuse_damaged({name: recorded[name] for name in lists if name in recorded})
        self._images = {
            split: _read_images(self.path / split / IMAGES, count)
            for split, count in self.manifest.images.items()
        }
        files = {shard.path(t): shard for shard in self.layout.shards for t in self.noise_steps}
        missing = [str(name) for name in files if not (self.path / name).is_file()]
        if missing:
            raise DiffLensError(
                f"{self.path} is not finished: of {counted(len(files), 'shard')}, {len(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing, "
                f"{missing[0]} for example; complete it with `difflens extract --resume`, or put its parts "
                "together with `difflens extract --merge`"
            )
        for name, shard in files.items():
            check_file(self.path / name, shard, self.layout)

    def verify(self) -> None:
        """Read all files, and compare them with their checksums.

        Raises:
            DiffLensError: a file is damaged, which the message names, or has no checksum.
        """
        recorded = read_checksums(self.path)
        shards = self.layout.shards
        names = [MANIFEST, *(f"{split}/{IMAGES}" for split in self.splits)]
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
        rows = self.rows(split).tolist()
        return [self._images[split][0][row] for row in rows]

    def labels(self, split: str) -> Tensor:
        """Return (N,) long: the labels of the stored images; -1 for images without a label."""
        rows = self.rows(split)
        return self._images[split][1][rows]

    def index(self, split: str) -> Tensor:
        """Return (N,) long: the numbers of the stored images, which with the seed decide their noise."""
        rows = self.rows(split)
        return self._images[split][2][rows]

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
                f"{self.path} has no block {block} at noise step {t}: it holds {named('block', self.blocks)} "
                f"at {named('noise step', self.noise_steps)}"
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
            DiffLensError: an image or a place is not in the store, or its labels are others.
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
        numbers = torch.tensor([number_of[name] for name in names], dtype=torch.long)
        known = self._images[split.name][1][numbers]
        if split.labels is not None and bool(((known != split.labels) & (known >= 0)).any()):
            raise DiffLensError(
                f"{self.path} has other labels of the {split.name} images: it is of other data"
            )
        entries = entry[numbers]
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


def _read_images(path: Path, count: int) -> tuple[list[str], Tensor, Tensor]:
    """Return the names of the `count` images of a split, their labels, (N,) long, -1 without a label, and
    their noise indices, (N,) long."""
    lines = read_table(path, ("image", "label", "noise_index"), _MOST)
    if len(lines) != count:
        raise DiffLensError(f"{path} has {counted(len(lines), 'image')}, and {MANIFEST} counts {count:,}")
    labels, index = [], []
    for number, line in lines.items():
        if not _LABEL.fullmatch(line["label"]):
            raise DiffLensError(
                f"{path}, line {number}: label is {short(line['label'])}, and no class number"
            )
        if not _INDEX.fullmatch(line["noise_index"]):
            raise DiffLensError(
                f"{path}, line {number}: noise_index is {short(line['noise_index'])}, and no whole number"
            )
        labels.append(int(line["label"] or -1))
        index.append(int(line["noise_index"]))
    names = [unguarded(line)["image"] for line in lines.values()]
    return names, torch.tensor(labels, dtype=torch.long), torch.tensor(index, dtype=torch.long)
