"""Splits of images with labels, and the data set of two splits that every source gives."""

import copy
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from difflens.choices import Exif
from difflens.data.content import checksums, content_digest
from difflens.data.images import BadImage, check_storage, decode_image, from_pil, image_shape, read_image
from difflens.errors import DiffLensError, counted
from difflens.noise import TEST_IMAGES, Stream, random_order
from difflens.run.console import note

Metric = Literal["top1", "mean_per_class", "map"]

# larger splits stay in main memory, and their batches are copied to the device
_RESIDENT_BYTES = 2**31


class ImageSplit(ABC):
    """Images in a fixed order, decoded one at a time or already in memory.

    It is a data set as torch's loaders take it: `split[i]` is an image and its label or labels.

    Attributes:
        name: "train", "test" or the source's own name.
        ids: a readable name for each image: its file relative to the root, or "train/00012".
        labels: (N,) long: the class of each image; (N, K) bool, if an image has several labels: the classes
            that are in it; or None if the images have none.
        index: (N,) long: the position of each image in the full split; a subset keeps it.
        noise_index: (N,) long: the number that seeds the noise of each image; a subset keeps it. It is
            `index`, but test images count from `TEST_IMAGES`.
        pixels: uint8, (N, C, H, W): the whole split where it is in memory, else None.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        labels: Tensor | None = None,
        index: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> None:
        self.name, self.ids, self.labels, self.pixels = name, ids, labels, pixels
        self.index = torch.arange(len(ids)) if index is None else index
        self.noise_index = self.index
        self._resident: dict[torch.device, Tensor] = {}
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Tensor, int | Tensor]:
        """Return the image at position `i`, uint8 (C, H, W) with C 1 or 3, and its label; -1 without labels.

        Of several labels an image it is (K,) bool. Negative positions count from the end.

        Raises:
            IndexError: there is no such position.
            BadImage: the image cannot be decoded.
        """
        row = range(len(self))[i]
        if self.labels is None:
            return self.image(row), -1
        return self.image(row), self.labels[row] if self.multi_label else int(self.labels[row])

    @property
    def multi_label(self) -> bool:
        """True if an image has several labels, or none of them."""
        return self.labels is not None and self.labels.ndim == 2

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Return the image at position `i`: uint8, (C, H, W), C 1 or 3.

        Raises:
            BadImage: the image cannot be decoded.
        """

    def shape(self, i: int) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the image at position `i`; errors as in `image`."""
        channels, height, width = self.image(i).shape
        return channels, height, width

    def subset(self, rows: Tensor | Sequence[int]) -> "ImageSplit":
        """Return some of the images, with the noise that they have in this split.

        Args:
            rows: (M,) whole numbers, the positions of the images; or (N,) bool, True for each that is kept.

        Raises:
            DiffLensError: `rows` is neither, or there is no such position.
        """
        chosen = rows if isinstance(rows, Tensor) else torch.tensor([*rows])
        if chosen.dtype == torch.bool and chosen.shape == (len(self),):
            chosen = chosen.nonzero()[:, 0]
        whole = not (chosen.is_floating_point() or chosen.dtype == torch.bool) or not chosen.numel()
        if chosen.ndim != 1 or not whole:
            raise DiffLensError(
                f"rows of {str(chosen.dtype).removeprefix('torch.')} {tuple(chosen.shape)}: a subset takes "
                f"positions, (M,) of whole numbers, or ({len(self):,},) of bool"
            )
        chosen = chosen.long().cpu()
        if bool(((chosen < 0) | (chosen >= len(self))).any()):
            raise DiffLensError(f"positions of a subset lie in 0 to {len(self) - 1:,}")
        return _Subset(self, chosen)

    def use_test_noise(self) -> None:
        """Give the images the noise of test images, which no training image has."""
        self.noise_index = self.index + TEST_IMAGES

    def unlabelled(self) -> "ImageSplit":
        """Return the same images without labels."""
        bare = copy.copy(self)
        bare.labels, bare._fingerprint = None, None
        return bare

    def mirrored(self) -> "ImageSplit":
        """Return the mirror images, left for right, with the noise that the images have in this split."""
        return _Mirrored(self)

    def pixels_on(self, device: torch.device) -> Tensor:
        """Return `pixels` on `device`, copied once, so that no batch is copied; in main memory if they are
        too large."""
        assert self.pixels is not None
        if device.type == "cpu" or self.pixels.numel() > _RESIDENT_BYTES:
            return self.pixels
        if device not in self._resident:
            self._resident[device] = self.pixels.to(device)
        return self._resident[device]

    def fingerprint(self) -> str:
        """Return a hex digest of names, labels, positions and the images' content; it is computed once.

        Torchvision's images are the exception: those that are not in memory count by label alone.
        """
        if self._fingerprint is None:
            self._fingerprint = self.former_fingerprint()
            content = self.content(range(len(self)))
            if content is not None:
                self._fingerprint = sha256(f"{self._fingerprint} {content}".encode()).hexdigest()
        return self._fingerprint

    def content(self, rows: Sequence[int]) -> str | None:
        """Return a digest of the images at `rows`; None if they are in memory or only decoded."""
        return None

    def checksums(self, rows: Sequence[int]) -> list[bytes] | None:
        """Return a digest of each image at `rows`, all zero where it cannot be read.

        Equal digests mean equal files, or equal pixels in memory. None if images are known only decoded.
        """
        if self.pixels is None:
            return None
        return [sha256(self.pixels[row].numpy().tobytes()).digest() for row in rows]

    def former_fingerprint(self) -> str:
        """Return the fingerprint of version 0.1: of names, labels, positions, and pixels or file sizes."""
        digest = sha256("\n".join(self.ids).encode(errors="surrogateescape"))
        for tensor in (self.labels, self.index, self.pixels):
            digest.update(b"none" if tensor is None else tensor.numpy().tobytes())
        return digest.hexdigest()


class MemorySplit(ImageSplit):
    """A split in memory: `pixels`, uint8 (N, C, H, W), with names "train/00000" and so on."""

    def __init__(self, name: str, pixels: Tensor, labels: Tensor | None = None) -> None:
        super().__init__(name, numbered(name, len(pixels)), labels, pixels=pixels)

    def image(self, i: int) -> Tensor:
        assert self.pixels is not None
        return self.pixels[i]


class FileSplit(ImageSplit):
    """A split of image files: `ids` are their paths, relative to `root` or absolute.

    Args:
        exif: "apply" turns images upright by their EXIF orientation.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        labels: Tensor | None = None,
        root: Path | None = None,
        exif: Exif = "apply",
    ) -> None:
        super().__init__(name, ids, labels)
        self.root, self.exif = root or Path(), exif

    def image(self, i: int) -> Tensor:
        return read_image(self.root / self.ids[i], self.exif)

    def shape(self, i: int) -> tuple[int, int, int]:
        return image_shape(self.root / self.ids[i], self.exif)

    def content(self, rows: Sequence[int]) -> str | None:
        return content_digest([self.root / self.ids[row] for row in rows])

    def checksums(self, rows: Sequence[int]) -> list[bytes] | None:
        return checksums([self.root / self.ids[row] for row in rows])

    def former_fingerprint(self) -> str:
        sizes = ",".join(str(_size(self.root / name)) for name in self.ids)
        return sha256(f"{super().former_fingerprint()} {sizes}".encode()).hexdigest()


class LibrarySplit(ImageSplit):
    """A data set of another library: `dataset[i][key]` is a Pillow image or {"bytes": ..., "path": ...}."""

    def __init__(self, name: str, dataset: Any, key: int | str, labels: Tensor | None = None) -> None:
        super().__init__(name, numbered(name, len(dataset)), labels)
        self.dataset, self.key = dataset, key

    def image(self, i: int) -> Tensor:
        try:
            entry = self.dataset[i][self.key]
            if not isinstance(entry, dict):
                return from_pil(entry)
        except Exception as error:  # the library opens the file, and Pillow raises nearly anything
            check_storage(error, self.ids[i])
            raise BadImage(self.ids[i], str(error) or type(error).__name__) from error
        source = Path(entry["path"]) if entry["bytes"] is None else BytesIO(entry["bytes"])
        return decode_image(source, f"{self.ids[i]} ({entry['path']})" if entry["path"] else self.ids[i])

    def content(self, rows: Sequence[int]) -> str | None:
        digest, paths = sha256(), []
        for row in rows:
            try:
                entry = self.dataset[row][self.key]
            except Exception:  # `image` raises BadImage for it
                entry = {"bytes": b"", "path": None}
            if not isinstance(entry, dict):
                return None
            if entry["bytes"] is None:
                paths.append(Path(entry["path"] or ""))
            else:
                digest.update(sha256(entry["bytes"]).digest())
        return sha256(f"{digest.hexdigest()} {content_digest(paths)}".encode()).hexdigest()


class JoinedSplit(ImageSplit):
    """The images of several splits one after another, with new indices, so with noise of their own.

    It has labels if all parts have them. Images are read one by one, even if the parts are in memory.
    """

    def __init__(self, name: str, parts: Sequence[ImageSplit]) -> None:
        labels = [part.labels for part in parts if part.labels is not None]
        super().__init__(
            name,
            [identity for part in parts for identity in part.ids],
            torch.cat(labels) if len(labels) == len(parts) else None,
        )
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def image(self, i: int) -> Tensor:
        number = bisect_right(self._ends, i)
        return self.parts[number].image(i - self._ends[number] + len(self.parts[number]))

    def content(self, rows: Sequence[int]) -> str | None:
        start, digest = 0, sha256()
        for part, end in zip(self.parts, self._ends, strict=True):
            content = part.content([row - start for row in rows if start <= row < end])
            digest.update((content or part.former_fingerprint()).encode())
            start = end
        return digest.hexdigest()


class _Subset(ImageSplit):
    """Some images of another split."""

    def __init__(self, full: ImageSplit, rows: Tensor) -> None:
        super().__init__(
            full.name,
            [full.ids[row] for row in rows.tolist()],
            None if full.labels is None else full.labels[rows],
            full.index[rows],
            None if full.pixels is None else full.pixels[rows],
        )
        self.full, self.rows = full, rows
        self.noise_index = full.noise_index[rows]

    def image(self, i: int) -> Tensor:
        return self.full.image(int(self.rows[i]))

    def shape(self, i: int) -> tuple[int, int, int]:
        return self.full.shape(int(self.rows[i]))

    def content(self, rows: Sequence[int]) -> str | None:
        return self.full.content(self.rows[torch.tensor(rows, dtype=torch.long)].tolist())

    def checksums(self, rows: Sequence[int]) -> list[bytes] | None:
        return self.full.checksums(self.rows[torch.tensor(rows, dtype=torch.long)].tolist())


class _Mirrored(ImageSplit):
    """The mirror images of another split."""

    def __init__(self, plain: ImageSplit) -> None:
        pixels = None if plain.pixels is None else plain.pixels.flip(-1)
        super().__init__(plain.name, plain.ids, plain.labels, plain.index, pixels)
        self.plain = plain
        self.noise_index = plain.noise_index

    def image(self, i: int) -> Tensor:
        return self.plain.image(i).flip(-1)

    def shape(self, i: int) -> tuple[int, int, int]:
        return self.plain.shape(i)

    def content(self, rows: Sequence[int]) -> str | None:
        return self.plain.content(rows)


@dataclass(frozen=True)
class ImageData:
    """A data set to train on and to evaluate on. Its test images have noise of their own.

    Attributes:
        spec: the argument of `load_data`.
        name: the title in tables and reports.
        classes: the names of the classes, in the order of the labels; empty if the data is loaded without
            labels.
        train: the training images.
        test: the test images.
        metric: the metric that the field reports on this data set: "top1", the accuracy over all images, or
            "mean_per_class", the mean of the classes' accuracies, or "map", the mean average precision of
            images with several labels.
    """

    spec: str
    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    test: ImageSplit
    metric: Metric = field(default="top1", kw_only=True)

    def __post_init__(self) -> None:
        self.test.use_test_noise()

    @property
    def multi_label(self) -> bool:
        """True if an image has several labels, or none of the classes."""
        return self.train.multi_label

    def fingerprint(self) -> str:
        """Return a hex digest, equal for equal classes, labels, names and content of images."""
        parts = (*self.classes, self.train.fingerprint(), self.test.fingerprint())
        return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()

    def former_fingerprint(self) -> str:
        """Return the fingerprint of version 0.1, which takes files by name and size."""
        parts = (*self.classes, self.train.former_fingerprint(), self.test.former_fingerprint())
        return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # `image` raises BadImage for a missing file
        return -1


def numbered(name: str, count: int) -> list[str]:
    """Return the names "NAME/00000", "NAME/00001" and so on."""
    return [f"{name}/{i:05d}" for i in range(count)]


def hold_out(split: ImageSplit, every: int = 5) -> tuple[ImageSplit, ImageSplit]:
    """Split a source without a test split into (train, test): every fifth image of each class is for
    testing.

    Raises:
        DiffLensError: no class has two images.
    """
    labels = torch.zeros(len(split)) if split.labels is None else split.labels
    held_out = every_nth(labels, every)
    if not held_out.any():
        raise DiffLensError(
            f"{split.name}: no test images are given, and none can be held out: no class has two images"
        )
    train, test = split.subset((~held_out).nonzero()[:, 0]), split.subset(held_out.nonzero()[:, 0])
    train.name, test.name = "train", "held-out"
    note(
        f"split: no test images are given, so every {every}th image of each class is one: {len(train):,} to "
        f"train on, {len(test):,} to test on"
    )
    return train, test


def split_off(whole: FileSplit, fraction: float, labels: bool = True) -> tuple[ImageSplit, ImageSplit]:
    """Split files without a split of their own into (train, val), by `held_out`.

    Args:
        labels: False gives splits without labels, of the same images.

    Raises:
        DiffLensError: no image would be left to train on, or to hold out.
    """
    out = held_out(whole.labels, len(whole), fraction)
    if not out.any() or out.all():
        raise DiffLensError(
            f"a fraction of {fraction:g} of {counted(len(whole), 'image')} leaves one side "
            "empty: there must be a class of two images or more"
        )
    whole = whole if labels else FileSplit(whole.name, whole.ids, None, whole.root, whole.exif)
    train, val = whole.subset((~out).nonzero()[:, 0]), whole.subset(out.nonzero()[:, 0])
    train.name, val.name = "train", "val"
    note(
        f"split: {counted(len(train), 'image')} to train on and {len(val):,} held out, by class; all runs "
        "share it"
    )
    return train, val


def held_out(labels: Tensor | None, count: int, fraction: float) -> Tensor:
    """Draw the same fraction of each class: round(fraction * n) of n images, at least one and not all.

    A class with a single image gives none. The draw has a seed of its own, so all commands and all seeds
    share the split. Images with several labels are drawn by their `strata`. Every class has an image that is
    not held out then, and one that is, if moving one image gives it one.

    Args:
        labels: (count,) long or (count, K) bool, as in `ImageSplit`; None: all images are of one class.

    Returns:
        (count,) bool: True for images that are held out.
    """
    several = labels if labels is not None and labels.ndim == 2 else None
    labels = torch.zeros(count, dtype=torch.long) if labels is None else strata(labels)
    sizes = labels.bincount()
    wanted = (fraction * sizes.double() + 0.5).floor().long().clamp(min=1).minimum(sizes - 1)
    order = random_order(Stream.HELD_OUT, torch.arange(count), 0)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[order[place_in_class(labels[order]) < wanted[labels[order]]]] = True
    if several is not None:
        for wanted_out in (False, True):
            _spread(several, chosen, wanted_out)
    return chosen


def _spread(labels: Tensor, chosen: Tensor, side: bool) -> None:
    """Give each class an image on one side of a split, in place, if it has one that may move there.

    Args:
        labels: (N, K) bool.
        chosen: (N,) bool, the sides of the images.
    """
    for k in range(labels.shape[1]):
        if (labels[:, k] & (chosen == side)).any():
            continue
        others = labels[chosen != side].sum(0)
        # to train on is needed more than to hold out, so the last image of another class may move there
        movable = labels[:, k] & ~(labels & (others == 1)).any(1) if side else labels[:, k]
        chosen[movable.nonzero()[:1, 0]] = side


def strata(labels: Tensor) -> Tensor:
    """Return (N,) long: the group of each image for draws by class.

    It is the class; of several labels an image, the rarest of its classes, and K for an image without labels.

    Args:
        labels: (N,) long or (N, K) bool.
    """
    if labels.ndim == 1:
        return labels
    order = labels.sum(0).argsort(stable=True)
    rarest = torch.cat([labels[:, order], torch.ones(len(labels), 1, dtype=torch.bool)], 1).int().argmax(1)
    return torch.cat([order, torch.tensor([labels.shape[1]])])[rarest]


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """Return (K,) long: the number of images of each of K classes.

    Args:
        labels: (N,) long or (N, K) bool.
    """
    return labels.bincount(minlength=classes) if labels.ndim == 1 else labels.sum(0)


def every_nth(labels: Tensor, every: int) -> Tensor:
    """Return (N,) bool: True for each `every`-th image of a class, in the order of the images.

    A class with fewer images gives its last one; a class with a single image gives none.

    Args:
        labels: (N,) classes of the images.
    """
    place = place_in_class(labels)
    values, counts = labels.unique(return_counts=True)
    size = counts[torch.searchsorted(values, labels)]
    return (place % every == every - 1) | ((size > 1) & (size < every) & (place == size - 1))


def place_in_class(labels: Tensor) -> Tensor:
    """Return (N,) long: the number, from 0, of each image among those of its class.

    Args:
        labels: (N,) classes of the images.
    """
    order = labels.argsort(stable=True)
    place = torch.empty(len(labels), dtype=torch.long)
    place[order] = torch.arange(len(labels))
    return place - torch.searchsorted(labels[order].contiguous(), labels)
