"""The loader: batches of images in a given order, the same for the same seed, epoch and order.

An image's augmentation depends neither on the batch size nor on the number of workers or processes.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from difflens.choices import Augmentation, OnBadImage
from difflens.data import images as image_ops
from difflens.data.images import BadImage, StorageError
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.noise import Stream, random_order

_BAD_IN_A_ROW = 100
"""So many bad images one after another end a reading that replaces them."""

# with fewer images, starting worker processes takes longer than decoding
_FEW_IMAGES = 256

T = TypeVar("T")


@dataclass
class Batch:
    """A batch of images, all tensors on one device.

    Attributes:
        images: uint8, (B, C, S, S).
        labels: (B,) long, (B, K) bool of several labels an image, or None.
        index: (B,) long: the number that seeds the noise of each image, see `ImageSplit.noise_index`.
        rows: (B,) long: positions in the split.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def iterate(
    split: ImageSplit,
    *,
    channels: int,
    side: int,
    batch_size: int,
    rows: Tensor | None = None,
    augment: Augmentation = "none",
    seed: int = 0,
    epoch: int = 0,
    workers: int | None = None,
    on_bad_image: OnBadImage = "error",
    bad: list[str] | None = None,
    replace: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Read `rows` of `split` in batches.

    A split in memory is indexed and augmented on `device`; worker processes decode any other split.

    Args:
        channels, side: the shape that the network takes; `images.fit` brings images to it.
        rows: (M,) long: positions in the split, in the order to read; None: all in order.
        augment: the augmentation of `images.augment`, a pure function of (seed, epoch, image index).
        workers: decoding processes; 0: this process; None: chosen by the machine and the number of images.
        on_bad_image: "error" raises the first BadImage; "skip" leaves the image out of its batch.
        bad: with "skip", receives "NAME: REASON" once for each image that is left out.
        replace: with "skip", the next readable image of the split takes the place of one that is left out, so
            all batches are whole.

    Yields:
        Batches of at most `batch_size` images, none of them empty.

    Raises:
        BadImage: an image cannot be decoded, and `on_bad_image` is "error"; or none can take its place.
    """
    rows = torch.arange(len(split)) if rows is None else rows.cpu()
    device = torch.device(device)
    prepare = _Prepare(split, channels, side, augment, seed, epoch, replace and on_bad_image == "skip")
    if split.pixels is None:
        return _decoded(prepare, rows, batch_size, workers, on_bad_image, bad, device)
    return _resident(prepare, rows, batch_size, device)


def read_batches(
    batches: "Dataset[T | DiffLensError]",
    keys: Callable[[], Iterator[Any]],
    images: int,
    workers: int | None,
    pin_memory: bool = False,
) -> Iterator[T]:
    """Yield `batches[key]`, a whole batch, for each key in order; worker processes read them.

    Args:
        batches: gives a batch, or an error, which is raised here: DataLoader would wrap an exception.
        keys: makes the keys one after another, as a long training reads millions of images.
        images: the number of images that are read in all.
        workers: decoding processes; 0: this process; None: chosen by the machine and the number of images.
        pin_memory: pin the memory of tensors, for copies to a GPU.

    Raises:
        DiffLensError: the first that `batches` gives; or there is too little shared memory.
    """
    if workers is None:
        workers = 0 if images < _FEW_IMAGES else min(8, usable_cores())
    loader = DataLoader(
        batches,
        batch_size=None,  # each value is a batch already
        sampler=_Keys(keys),
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_shared,
        generator=torch.Generator(),  # else each epoch would draw a seed from the global generator
    )
    for batch in loader:
        if isinstance(batch, DiffLensError):
            raise batch
        yield batch


def usable_cores() -> int:
    """Return the number of cores for this process.

    The cores that the system grants are shared by the processes of `torchrun` on this machine.
    """
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, granted // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Keys(Sampler[Any]):
    def __init__(self, make: Callable[[], Iterator[Any]]):
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _shared(item: object) -> object:
    """Put the tensors of a batch into shared memory, if a worker process read it.

    What DataLoader does later, in a thread: a failure there would leave this process waiting.
    """
    if get_worker_info() is not None:
        try:
            for tensor in _tensors(item):
                tensor.share_memory_()
        except RuntimeError as error:
            reason = "there is too little shared memory for the processes that read images"
            return DiffLensError(f"{reason}: enlarge /dev/shm, or use --workers 0 ({error})")
    return item


def _tensors(item: object) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, list | tuple | dict):
        for part in item.values() if isinstance(item, dict) else item:
            yield from _tensors(part)


def chunks(rows: Tensor, size: int) -> Iterator[list[int]]:
    """Cut `rows`, (M,) long, into lists of at most `size`, none of them empty."""
    return (rows[start : start + size].tolist() for start in range(0, len(rows), size))


def epoch_order(n: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Tensor:
    """Return the rows, (M,) long, of a split of `n` images that process `rank` of `world` trains on.

    (seed, epoch) decide the order, and all processes get equally many rows: the order wraps around.
    """
    order = random_order(Stream.EPOCH_ORDER, torch.arange(n), seed, epoch)
    share = -(-n // world)
    return order[torch.arange(rank, share * world, world) % n]


def share_of(n: int, rank: int, world: int) -> Tensor:
    """Return the rows, (M,) long, of a split of `n` images that process `rank` of `world` evaluates.

    The shares are disjoint, and together they contain each row once.
    """
    return torch.arange(rank, n, world)


@dataclass
class _Prepare(Dataset["_Decoded | StorageError"]):
    """Turns rows of a split into images of the network's shape. As a data set, its items are decoded
    batches."""

    split: ImageSplit
    channels: int
    side: int
    kind: Augmentation
    seed: int
    epoch: int
    replace: bool = False

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        draws = image_ops.augmentation_draws(index, self.seed, self.epoch)
        return image_ops.augment(images, self.kind, self.channels, self.side, draws)

    def __getitem__(self, rows: list[int]) -> "_Decoded | StorageError":
        images, readable, failures = [], [], []
        for first in rows:
            for row in self._candidates(first):
                try:
                    image = self.split.image(row)
                except BadImage as error:  # as a value, because DataLoader would wrap the exception
                    failures.append((row, error))
                except StorageError as error:
                    return error
                else:
                    images.append(self(image[None], self.split.noise_index[row : row + 1]))
                    readable.append(row)
                    break
            else:
                if self.replace:
                    readable.clear()  # no batch, and an error
                    break
        empty = torch.empty(0, self.channels, self.side, self.side, dtype=torch.uint8)
        return torch.cat([empty, *images]), readable, failures

    def _candidates(self, row: int) -> Iterator[int]:
        """Yield a row, and with `replace` the rows that may take its place."""
        count = len(self.split)
        tries = min(_BAD_IN_A_ROW, count) if self.replace else 1
        return ((row + k) % count for k in range(tries))


_Decoded = tuple[Tensor, list[int], list[tuple[int, BadImage]]]
"""Images, uint8 (B, C, S, S); their rows; and the rows that cannot be decoded, with the reason."""


def _resident(prepare: _Prepare, rows: Tensor, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Yield batches of a split in memory."""
    split = prepare.split
    pixels = split.pixels_on(device)
    # copy everything to the device once, so that no step of a small network waits for a copy
    rows = rows.to(device)
    index = split.noise_index.to(device)[rows]
    labels = None if split.labels is None else split.labels.to(device)[rows]
    for start in range(0, len(rows), batch_size):
        chunk = slice(start, start + batch_size)
        images = pixels[rows[chunk].to(pixels.device)].to(device)
        yield Batch(
            prepare(images, index[chunk]),
            None if labels is None else labels[chunk],
            index[chunk],
            rows[chunk],
        )


def _decoded(
    prepare: _Prepare,
    rows: Tensor,
    batch_size: int,
    workers: int | None,
    on_bad_image: OnBadImage,
    bad: list[str] | None,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield batches of a split whose images are decoded."""
    batches = read_batches(
        prepare, lambda: chunks(rows, batch_size), len(rows), workers, pin_memory=device.type == "cuda"
    )
    for images, readable, failures in batches:
        for row, error in failures:
            if on_bad_image == "error":
                raise error
            if prepare.replace and not readable:
                raise BadImage(error.where, f"{error.reason}; no image after it takes its place")
            line = f"{prepare.split.ids[row]}: {error.reason}"
            if bad is not None and line not in bad:
                bad.append(line)
        if readable:
            yield _batch(prepare.split, images, torch.tensor(readable), device)


def _batch(split: ImageSplit, images: Tensor, rows: Tensor, device: torch.device) -> Batch:
    labels = None if split.labels is None else split.labels[rows].to(device)
    index = split.noise_index[rows].to(device)
    return Batch(images.to(device, non_blocking=True), labels, index, rows.to(device))
