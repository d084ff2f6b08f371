"""Readers of semantic masks: ADE20K's layout, Pascal VOC's, or pairs of images and masks in separate folders.

The value of a mask's pixel is its class. The three layouts differ in the meaning of the values:

    ADE20K       0 and 255 are no class, k the k-th line of objectInfo150.txt
    Pascal VOC   0 is background, 255 no class
    pairs        k is the k-th line of classes.txt counted from 0, 255 no class

Other values of no class can be named instead. A line of the class list with such a value is no class.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from difflens.choices import Exif, OnBadAnnotation
from difflens.data.dense.base import (
    IGNORED,
    DenseData,
    Problems,
    distinct,
    misfit,
    require_entries,
    turned,
)
from difflens.data.files import Others, find_images, folder_name, read_lines
from difflens.data.images import BadImage, image_size, open_mask, orientation
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted, listing
from difflens.run.console import progress_bar

BACKGROUND = "background"

VOC_CLASSES = (
    BACKGROUND,
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_UNKNOWN = 254  # marks a value that stands for no class
_LAYOUTS = (
    "ADE20K (images/{training,validation}, annotations/{training,validation}, objectInfo150.txt), Pascal VOC "
    "(JPEGImages, SegmentationClass, ImageSets/Segmentation), or pairs (images/{train,val}, "
    "masks/{train,val}, classes.txt)"
)

Pair = tuple[Path, Path]
"""A folder of images and the folder of their masks."""


class MaskSplit(FileSplit):
    """Images with a mask of classes.

    Args:
        ids: the image files, relative to `root`.
        masks: the mask file of each image.
        values: (256,) uint8: the class that each value in a mask file stands for, or `IGNORED`.
        digest: a hex digest of the masks' content.
        exif: "apply" turns images and masks upright by their EXIF orientation.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        root: Path,
        masks: Sequence[Path],
        values: NDArray[np.uint8],
        digest: str,
        exif: Exif = "apply",
    ):
        super().__init__(name, ids, root=root, exif=exif)
        self.masks, self.values, self.digest = masks, values, digest

    def mask(self, i: int) -> Tensor:
        """Return the class of each pixel of image `i`, uint8 (H, W); `IGNORED` where there is none."""
        return torch.from_numpy(self.values[read_mask(self.masks[i], self.exif)])

    def class_values(self) -> list[int]:
        """Return the value of each class in the mask files, in the order of the classes."""
        values: list[int] = np.flatnonzero(self.values < _UNKNOWN).tolist()
        return values

    def former_fingerprint(self) -> str:
        return sha256(f"{super().former_fingerprint()}{self.digest}".encode()).hexdigest()


def load_masks(
    root: Path, on_bad: OnBadAnnotation = "error", ignore: Collection[int] | None = None, exif: Exif = "apply"
) -> DenseData[MaskSplit]:
    """Load a data set in one of the three layouts, recognised by its folders. All masks are read once, to
    check them.

    Args:
        ignore: the values of the masks that are no class; None: those of the layout.
        exif: "apply" turns images and masks upright by their EXIF orientation; "ignore" reads both as stored.

    Raises:
        DiffLensError: there is no such folder, it has none of the layouts, a class list is missing or has
            gaps, or the training masks show fewer than two classes. With "error" also: an image or mask is
            missing or unreadable, their sizes differ, or a value stands for no class.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUTS}")
    if (root / "annotations" / "training").is_dir():
        return _load_ade20k(root, on_bad, ignore, exif)
    for voc in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (voc / "SegmentationClass").is_dir():
            return _load_voc(voc, on_bad, ignore, exif)
    if (root / "masks").is_dir():
        train, val = ((root / "images" / split, root / "masks" / split) for split in ("train", "val"))
        return load_pairs(train, val, root / "classes.txt", on_bad, ignore, exif, folder_name(root))
    raise DiffLensError(f"{root} has no layout of masks that is known; expected {_LAYOUTS}")


def load_pairs(
    train: Pair,
    val: Pair,
    classes: Path,
    on_bad: OnBadAnnotation = "error",
    ignore: Collection[int] | None = None,
    exif: Exif = "apply",
    name: str | None = None,
) -> DenseData[MaskSplit]:
    """Load images and masks from two folders for each split; an image and its mask share a name up to the
    suffix.

    Args:
        classes: a file with one class a line, in the order of the values in the masks.
        ignore, exif: as in `load_masks`.

    Raises:
        DiffLensError: for the reasons of `load_masks`.
    """
    names = dict(enumerate(_read_classes(classes)))
    meaning = _Meaning.of(names, {IGNORED} if ignore is None else ignore, classes)
    problems = Problems(on_bad)
    pairs = _matched([train, val], problems)
    return _assemble(name or folder_name(train[0].parent), meaning, pairs, problems, exif)


def _load_ade20k(
    root: Path, on_bad: OnBadAnnotation, ignore: Collection[int] | None, exif: Exif
) -> DenseData[MaskSplit]:
    info = root / "objectInfo150.txt"
    names: dict[int, str] = {}
    for number, line in enumerate(_lines(info)[1:], start=1):
        # columns: Idx, Ratio, Train, Val, Stuff, Name; a name is a list of synonyms, the first is taken
        columns = line.split("\t")
        if columns[0] != str(number):
            raise DiffLensError(f"{info}, line {number + 1}: the class has Idx {number}, not {columns[0]!r}")
        names[number] = columns[-1].split(",")[0].strip()
    if not names:
        raise DiffLensError(f"{info} names no classes; expected a heading, and one line for each class")
    names = dict(zip(names, distinct(names), strict=True))
    meaning = _Meaning.of(names, {0, IGNORED} if ignore is None else ignore, info)
    problems = Problems(on_bad)
    folders = [
        (root / "images" / split, root / "annotations" / split) for split in ("training", "validation")
    ]
    return _assemble("ADE20K", meaning, _matched(folders, problems), problems, exif)


def _load_voc(
    root: Path, on_bad: OnBadAnnotation, ignore: Collection[int] | None, exif: Exif
) -> DenseData[MaskSplit]:
    own = root / "classes.txt"
    names = _read_classes(own) if own.is_file() else VOC_CLASSES
    meaning = _Meaning.of(dict(enumerate(names)), {IGNORED} if ignore is None else ignore, own)
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    pairs = []
    for split in ("train", "val"):
        stems = read_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", _LAYOUTS, files=True)
        pairs.append([(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems if stem])
    problems = Problems(on_bad)
    return _assemble(f"Pascal VOC ({folder_name(root)})", meaning, pairs, problems, exif)


def read_mask(path: Path, exif: Exif = "apply") -> NDArray[np.uint8]:
    """Return the values of a mask file, uint8 (H, W).

    Raises:
        BadImage: the file cannot be read, has colours instead of one value a pixel, or is of a format whose
            values change when it is decoded.
    """
    image, change = open_mask(path, exif)
    if image.mode not in ("L", "P", "1"):
        reason = f"a mask has one byte a pixel, its class (grey or palette), not Pillow's mode {image.mode}"
        raise BadImage(str(path), reason)
    if change:
        raise BadImage(
            str(path), f"a mask keeps its values as they are, but this is {change}: save it as 8-bit PNG"
        )
    pixels = np.asarray(image)
    return pixels.astype(np.uint8)


def to_palette_image(
    mask: NDArray[np.uint8], classes: Sequence[str] = (BACKGROUND,), values: Sequence[int] = ()
) -> Image.Image:
    """Return a mask, (H, W), as a palette image, whose colours tell the classes apart.

    Args:
        mask: the number of the class at each pixel, or `IGNORED`.
        classes: their names, in the order of the numbers.
        values: the value in the image of each class, 0 to 254; none: its number.
    """
    written, colours = np.arange(256, dtype=np.uint8), class_palette(classes)
    written[: len(values)] = values
    colours[[*values]] = colours[: len(values)].copy()
    image = Image.fromarray(written[mask], "P")
    image.putpalette(colours.flatten().tolist())
    return image


def class_palette(classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return the colours of the 256 values of masks, uint8 (256, 3), for masks, overlays and legends.

    A first class that is the background is black; any other has the first colour of `palette`.
    """
    first = 0 if classes[0].lower() == BACKGROUND else 1
    return palette()[(np.arange(256) + first).clip(max=255)]


def palette() -> NDArray[np.uint8]:
    """Return Pascal VOC's colours of the 256 values, uint8 (256, 3).

    The lowest three bits of a value are the highest bits of red, green and blue, the next three the bits
    below.
    """
    colours = np.zeros((256, 3), np.uint8)
    values = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((values >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


@dataclass(frozen=True)
class _Meaning:
    """The meaning of the values in mask files.

    Attributes:
        classes: the names of the classes.
        values: (256,) uint8: the class of each value, `IGNORED` or `_UNKNOWN`.
    """

    classes: tuple[str, ...]
    values: NDArray[np.uint8]

    @classmethod
    def of(cls, names: Mapping[int, str], ignore: Collection[int], path: Path) -> "_Meaning":
        """Return the meaning of values with these names, without those of no class; `path` lists the names.

        Raises:
            DiffLensError: fewer than two classes, or more than masks hold, are left, or a value is above 255.
        """
        kept = {value: name for value, name in names.items() if value not in ignore}
        if not 2 <= len(kept) <= _UNKNOWN:
            left = f", {len(kept)} without the ignored values" if len(kept) < len(names) else ""
            raise DiffLensError(
                f"{path} names {counted(len(names), 'class')}{left}; masks hold 2 to {_UNKNOWN}"
            )
        largest = max(kept)
        if largest > 255:
            raise DiffLensError(f"{path}: {kept[largest]!r} has the value {largest}; masks hold 0 to 255")
        values = np.full(256, _UNKNOWN, np.uint8)
        values[list(ignore)] = IGNORED
        values[list(kept)] = np.arange(len(kept))
        return cls(tuple(kept.values()), values)

    def require_classes(self, split: str, counts: NDArray[np.int64], name: str) -> tuple[str, ...]:
        """Return a line about the classes that the masks of a split do not show; none if they show all.

        Args:
            counts: (256,) pixels of each value in the masks.

        Raises:
            DiffLensError: the training masks show fewer than two classes, or the validation masks none.
        """
        shown = {*self.values[counts > 0].tolist()} - {IGNORED}
        missing = [title for k, title in enumerate(self.classes) if k not in shown]
        if len(shown) >= (2 if split == "train" else 1):
            return (f"classes without a pixel in the {split} masks: {listing(missing)}",) if missing else ()
        values, ignored = np.flatnonzero(counts), np.flatnonzero((counts > 0) & (self.values == IGNORED))
        only = f"the class {self.classes[shown.pop()]} alone" if shown else "no class"
        classes = np.flatnonzero(self.values < len(self.classes))
        raise DiffLensError(
            f"the {split} masks of {name} show {only}: their values are {listing(values.tolist())}, of which "
            f"{listing(ignored.tolist()) or 'none'} are ignored. The values of classes are "
            f"{listing(classes.tolist())}, and --ignore names the values of no class"
        )


def _matched(folders: Sequence[Pair], problems: Problems) -> list[list[Pair]]:
    """Return the image and mask files of each pair of folders that share a name up to the suffix."""
    matched = []
    others = Others()
    for images, masks in folders:
        for folder in (images, masks):
            if not folder.is_dir():
                raise DiffLensError(
                    f"no such folder: {folder}; every folder of images needs a folder of masks"
                )
        unmatched: dict[Path, Path] = {}
        for mask in _files(masks, others):
            first = unmatched.setdefault(mask.relative_to(masks).with_suffix(""), mask)
            if first != mask:
                problems.add(mask, f"{first} is a mask of this name already")
        pairs = []
        for path in find_images(images, others):
            partner = unmatched.pop(path.relative_to(images).with_suffix(""), None)
            if partner is None:
                problems.add(path, f"{masks} has no mask of this name")
            else:
                pairs.append((path, partner))
        for mask in unmatched.values():
            problems.add(mask, f"{images} has no image of this name")
        matched.append(pairs)
    others.tell()
    return matched


def _files(folder: Path, others: Others) -> list[Path]:
    """Return the image files in a folder, which may have none."""
    try:
        return find_images(folder, others)
    except DiffLensError:
        return []


def _assemble(
    name: str, meaning: _Meaning, pairs: list[list[Pair]], problems: Problems, exif: Exif
) -> DenseData[MaskSplit]:
    splits, notes, oriented = [], list[str](), 0
    for split, candidates in zip(("train", "val"), pairs, strict=True):
        usable = list(_checked(split, candidates, meaning, problems, exif))
        problems.settle()
        require_entries(split, usable, name, problems)
        notes += meaning.require_classes(split, np.sum([each.counts for each in usable], axis=0), name)
        oriented += sum(each.oriented for each in usable)
        root = _common_folder([each.image for each in usable])
        ids = [each.image.relative_to(root).as_posix() for each in usable]
        digest = sha256("".join(each.digest for each in usable).encode()).hexdigest()
        masks = [each.mask for each in usable]
        splits.append(MaskSplit(split, ids, root, masks, meaning.values, digest, exif))
    lines = (*turned(oriented, exif), *notes)
    return DenseData(name, meaning.classes, splits[0], splits[1], tuple(problems.lines), lines)


class _Checked(NamedTuple):
    """An image and its mask.

    Attributes:
        digest: a hex digest of the mask's values.
        counts: (256,) pixels of each value.
        oriented: True if the image has an EXIF orientation.
    """

    image: Path
    mask: Path
    digest: str
    counts: NDArray[np.int64]
    oriented: bool


def _checked(
    split: str, pairs: list[Pair], meaning: _Meaning, problems: Problems, exif: Exif
) -> Iterator[_Checked]:
    """Yield each pair that is right."""

    def check(pair: Pair) -> _Checked | str:
        """Return a pair that is right, else the reason why it is not."""
        try:
            size, mask = image_size(pair[0], exif), read_mask(pair[1], exif)
            oriented = orientation(pair[0]) > 1
        except BadImage as error:
            return f"cannot be read ({error.where}: {error.reason})"
        if mask.shape != size:
            (height, width), (rows, columns) = size, mask.shape
            hint = misfit((rows, columns), pair[0], exif)
            return f"is {columns} x {rows} pixels, its image {pair[0]} {width} x {height}{hint}"
        counts = np.bincount(mask.ravel(), minlength=256)
        wrong = np.flatnonzero((counts > 0) & (meaning.values == _UNKNOWN)).tolist()
        if wrong:
            return f"has the class id {listing(wrong)}, of {counted(len(meaning.classes), 'class')}"
        return _Checked(*pair, sha256(mask.tobytes()).hexdigest(), counts, oriented)

    # threads, because Pillow decodes without the interpreter's lock
    with ThreadPoolExecutor(8) as pool, progress_bar() as bar:
        task = bar.add_task(f"checking {split} masks", total=len(pairs), note="")
        for (_, mask), found in zip(pairs, pool.map(check, pairs), strict=True):
            bar.update(task, advance=1)
            if isinstance(found, str):
                problems.add(mask, found)
            else:
                yield found


def _read_classes(path: Path) -> tuple[str, ...]:
    names = _lines(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiffLensError(f"{path} names {listing(twice)} twice")
    return tuple(names)


def _lines(path: Path) -> list[str]:
    """Return the lines of a class list, whose numbers are the classes' ids.

    Raises:
        DiffLensError: the file cannot be read, or has a blank line before its end.
    """
    lines = read_lines(path, _LAYOUTS)
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DiffLensError(
            f"{path}, line {lines.index('') + 1}: the line is blank, and lines number the classes; remove "
            "it, or name a class"
        )
    return lines


def _common_folder(paths: list[Path]) -> Path:
    parents = {path.parent for path in paths}
    common = next(iter(parents))
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common
