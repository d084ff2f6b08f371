"""The latents of images: encoded once, kept in memory or in a file, and shared by all noise levels."""

import math
import os
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import MapShape
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError


class Latents:
    """The latents of some images of a split, by row.

    The first reading of these rows fills them; later readings take them in place of the images.

    Args:
        rows: (N,) long, ascending: positions in the split.
        shape: (C, H, W) of the latents of an image.
        file: the file that holds them; None: memory.

    Attributes:
        values: (N, C, H, W) float32.
        readable: (N,) bool: False for an image that could not be read, whose values are undefined.
        complete: True after the first reading.
        gigabytes: the memory that they take.

    Raises:
        DiffLensError: the disk has too little room.
    """

    def __init__(self, rows: Tensor, shape: MapShape, file: Path | None = None):
        self.rows = rows
        self.values = allocate((len(rows), *shape), torch.float32, file)
        self.readable = torch.zeros(len(rows), dtype=torch.bool)
        self.complete = False
        self.gigabytes = 0.0 if file else self.values.nbytes / 1e9

    @classmethod
    def of(
        cls, backbone: Backbone, split: ImageSplit, memory_gigabytes: float, spill: Path
    ) -> "Latents | None":
        """Return empty latents of a split; None for a backbone that reads pixels.

        Args:
            memory_gigabytes: larger latents are kept in a file in the folder `spill`, in gigabytes.

        Raises:
            DiffLensError: the disk has too little room.
        """
        shape = backbone.latent_shape
        if shape is None:
            return None
        large = 4 * len(split) * math.prod(shape) > memory_gigabytes * 1e9
        return cls(torch.arange(len(split)), shape, spill / f"{split.name}.latents" if large else None)

    def tail(self, start: int) -> "Latents":
        """Return the latents from the entry `start` on, in the same memory."""
        rest = copy(self)
        rest.rows, rest.values, rest.readable = (
            values[start:] for values in (self.rows, self.values, self.readable)
        )
        return rest

    def keep(self, rows: Tensor, latents: Tensor) -> None:
        """Keep the latents, (B, C, H, W) on any device, of the images at `rows`, (B,) long."""
        entries = torch.searchsorted(self.rows, rows)
        self.values[entries] = latents.cpu()
        self.readable[entries] = True

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows and latents in the batches of the first reading, which had `size` images at most."""
        for entries in torch.arange(len(self.rows)).split(size):
            there = entries[self.readable[entries]]
            if len(there):
                yield self.rows[there], self.values[there]


def allocate(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None) -> Tensor:
    """Return an uninitialised tensor in memory, or in a file, which is created.

    Raises:
        DiffLensError: the disk has too little room.
    """
    if file is None:
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape)
    size = dtype.itemsize * count
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("wb") as opened:  # a full disk is an error here, not a crash while the tensor fills
            os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        raise DiffLensError(f"no room for {size / 1e9:.1f} GB in {file.parent}: {error.strerror}") from error
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)
