"""Features that several runs on one backbone share, so that each image is read once."""

import shutil
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.data.split import ImageSplit
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, is_about, read_sides


@dataclass(frozen=True)
class _Read:
    """What was read of a split.

    Attributes:
        index: (N,) long: the images, as in `ImageSplit`.
        caches: the features by side.
        skipped: a line for each image that cannot be read.
    """

    index: Tensor
    caches: dict[int | None, FeatureCache]
    skipped: list[str]


class SharedFeatures:
    """The features of one backbone in one process, at all sides that some heads read.

    The first run that asks for a split reads it at all sides. A run that asks for the same images, or fewer,
    with the same noise and places gets equal bits without a reading. So ask for the most images first.

    Args:
        sides: the sides that the heads pool larger maps to; None: whole maps.
        folder: keeps what does not fit into memory, until `close`.
    """

    def __init__(self, sides: Iterable[int | None], folder: Path):
        self.sides, self.folder = tuple(dict.fromkeys(sides)), folder
        self._held: dict[Hashable, _Read] = {}
        self._readings = 0

    def read(
        self,
        extractor: Extractor,
        side: int | None,
        split: ImageSplit,
        process: Accelerator,
        reading: Reading,
        memory_gigabytes: float,
    ) -> FeatureCache:
        """Return the features of `split`; arguments and errors as in `read_features`.

        Args:
            side: one of `sides`.
            memory_gigabytes: of all features that are held.
        """
        key = (split.name, tuple(extractor.places), extractor.seed, extractor.draws)
        read = self._held.get(key)
        entries = None if read is None else _positions(read.index, split.index)
        if read is None or entries is None:
            self._held.pop(key, None)
            taken = sum(cache.gigabytes for read in self._held.values() for cache in read.caches.values())
            room, skipped = max(0.0, memory_gigabytes - taken) / len(self.sides), list[str]()
            own = Reading(reading.workers, reading.on_bad_image, skipped)
            self._readings += 1
            folder = self.folder / str(self._readings)  # earlier features may still be in use
            caches = read_sides(extractor, self.sides, split, process, own, room, folder)
            read = self._held[key] = _Read(split.index, caches, skipped)
            entries = torch.arange(len(split))
        names = set(split.ids)
        reading.skipped.extend(line for line in read.skipped if is_about(line, names))
        return _part(read.caches[side], entries, len(read.index))

    def close(self) -> None:
        """Forget the features, and remove their files."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _positions(index: Tensor, asked: Tensor) -> Tensor | None:
    """Return the positions in `index` of the numbers `asked`, (M,) long; None if one is missing."""
    order = index.argsort()
    found = torch.searchsorted(index[order], asked).clamp(max=len(index) - 1)
    positions = order[found]
    return positions if torch.equal(index[positions], asked) else None


def _part(cache: FeatureCache, positions: Tensor, length: int) -> FeatureCache:
    """Return the features of the images at `positions` of a split of `length` images."""
    entry_of = torch.full((length,), -1)
    entry_of[cache.rows] = torch.arange(len(cache))
    there = entry_of[positions] >= 0  # others cannot be read
    entries = entry_of[positions[there]]
    maps = cache.maps
    if not torch.equal(entries, torch.arange(len(cache))):
        maps = {place: values[entries] for place, values in maps.items()}
    return FeatureCache(maps, cache.labels[entries], there.nonzero()[:, 0])
