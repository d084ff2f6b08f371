"""Readers of semantic masks: ADE20K's layout, Pascal VOC's, or pairs of images and masks in separate folders.

The value of a mask's pixel is its class. The three layouts differ in the meaning of the values:

    ADE20K       0 is no class, k the k-th line of objectInfo150.txt
    Pascal VOC   0 is background, 255 no class
    pairs        k is the k-th line of classes.txt counted from 0, 255 no class
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from difflens.choices import OnBadAnnotation
from difflens.data.dense.base import IGNORED, DenseData, Problems, require_entries
from difflens.data.files import find_images
from difflens.data.images import BadImage, image_size, open_image
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, listing
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
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        root: Path,
        masks: Sequence[Path],
        values: NDArray[np.uint8],
        digest: str,
    ):
        super().__init__(name, ids, root=root)
        self.masks, self.values, self.digest = masks, values, digest

    def mask(self, i: int) -> Tensor:
        """Return the class of each pixel of image `i`, uint8 (H, W); `IGNORED` where there is none."""
        return torch.from_numpy(self.values[read_mask(self.masks[i])])

    def former_fingerprint(self) -> str:
        return sha256(f"{super().former_fingerprint()}{self.digest}".encode()).hexdigest()


def load_masks(root: Path, on_bad: OnBadAnnotation = "error") -> DenseData[MaskSplit]:
    """Load a data set in one of the three layouts, recognised by its folders. All masks are read once, to
    check them.

    Raises:
        DiffLensError: there is no such folder, it has none of the layouts, or a class list is missing. With
            "error" also: an image or mask is missing or unreadable, their sizes differ, or a value stands for
            no class.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUTS}")
    if (root / "annotations" / "training").is_dir():
        return _load_ade20k(root, on_bad)
    for voc in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (voc / "SegmentationClass").is_dir():
            return _load_voc(voc, on_bad)
    if (root / "masks").is_dir():
        train, val = ((root / "images" / split, root / "masks" / split) for split in ("train", "val"))
        return load_pairs(train, val, root / "classes.txt", on_bad, root.name)
    raise DiffLensError(f"{root} has no layout of masks that is known; expected {_LAYOUTS}")


def load_pairs(
    train: Pair, val: Pair, classes: Path, on_bad: OnBadAnnotation = "error", name: str | None = None
) -> DenseData[MaskSplit]:
    """Load images and masks from two folders for each split; an image and its mask share a name up to the
    suffix.

    Args:
        classes: a file with one class a line, in the order of the values in the masks.

    Raises:
        DiffLensError: for the reasons of `load_masks`.
    """
    names = _read_classes(classes)
    values = _values({k: k for k in range(len(names))})
    problems = Problems(on_bad)
    pairs = [_matched(*folders, problems) for folders in (train, val)]
    return _assemble(name or train[0].parent.name, names, values, pairs, problems)


def _load_ade20k(root: Path, on_bad: OnBadAnnotation) -> DenseData[MaskSplit]:
    info = root / "objectInfo150.txt"
    lines = _lines(info)[1:]
    # columns: Idx, Ratio, Train, Val, Stuff, Name; a name is a list of synonyms, of which the first is taken
    names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines)
    if not names:
        raise DiffLensError(f"{info} names no classes; expected a heading, and one line for each class")
    values = _values({k + 1: k for k in range(len(names))} | {0: IGNORED})
    problems = Problems(on_bad)
    pairs = [
        _matched(root / "images" / split, root / "annotations" / split, problems)
        for split in ("training", "validation")
    ]
    return _assemble("ADE20K", names, values, pairs, problems)


def _load_voc(root: Path, on_bad: OnBadAnnotation) -> DenseData[MaskSplit]:
    own = root / "classes.txt"
    names = _read_classes(own) if own.is_file() else VOC_CLASSES
    values = _values({k: k for k in range(len(names))})
    pairs = []
    for split in ("train", "val"):
        stems = _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt")
        images, masks = root / "JPEGImages", root / "SegmentationClass"
        pairs.append([(images / f"{stem}.jpg", masks / f"{stem}.png") for stem in stems])
    return _assemble(f"Pascal VOC ({root.name})", names, values, pairs, Problems(on_bad))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return the values of a mask file, uint8 (H, W).

    Raises:
        BadImage: the file cannot be read, or has colours instead of one value a pixel.
    """
    image = open_image(path)
    if image.mode not in ("L", "P", "1"):
        reason = f"a mask has one byte a pixel, its class (grey or palette), not Pillow's mode {image.mode}"
        raise BadImage(str(path), reason)
    pixels = np.asarray(image)
    return pixels.astype(np.uint8)


def to_palette_image(mask: NDArray[np.uint8]) -> Image.Image:
    """Return a mask, (H, W), as a palette image: its values are the classes, its colours tell them apart."""
    image = Image.fromarray(mask, "P")
    image.putpalette(palette().flatten().tolist())
    return image


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


def _matched(images: Path, masks: Path, problems: Problems) -> list[tuple[Path, Path]]:
    """Return pairs of image and mask files that share a name up to the suffix."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise DiffLensError(f"no such folder: {folder}; every folder of images needs a folder of masks")
    unmatched = {path.relative_to(masks).with_suffix(""): path for path in _files(masks)}
    pairs = []
    for path in find_images(images):
        mask = unmatched.pop(path.relative_to(images).with_suffix(""), None)
        if mask is None:
            problems.add(path, f"{masks} has no mask of this name")
        else:
            pairs.append((path, mask))
    for mask in unmatched.values():
        problems.add(mask, f"{images} has no image of this name")
    return pairs


def _files(folder: Path) -> list[Path]:
    """Return the image files in a folder, which may have none."""
    try:
        return find_images(folder)
    except DiffLensError:
        return []


def _assemble(
    name: str,
    classes: tuple[str, ...],
    values: NDArray[np.uint8],
    pairs: list[list[tuple[Path, Path]]],
    problems: Problems,
) -> DenseData[MaskSplit]:
    splits = []
    for split, candidates in zip(("train", "val"), pairs, strict=True):
        usable = list(_checked(split, candidates, values, len(classes), problems))
        problems.settle()
        require_entries(split, usable, name, problems)
        root = _common_folder([image for image, _, _ in usable])
        ids = [image.relative_to(root).as_posix() for image, _, _ in usable]
        digest = sha256("".join(digest for *_, digest in usable).encode()).hexdigest()
        splits.append(MaskSplit(split, ids, root, [mask for _, mask, _ in usable], values, digest))
    return DenseData(name, classes, splits[0], splits[1], tuple(problems.lines))


def _checked(
    split: str, pairs: list[tuple[Path, Path]], values: NDArray[np.uint8], classes: int, problems: Problems
) -> Iterator[tuple[Path, Path, str]]:
    """Yield the image and the mask of each pair that is right, and the mask's digest."""

    def check(pair: tuple[Path, Path]) -> tuple[str, str]:
        """Return (digest, "") for a pair that is right, else ("", reason)."""
        try:
            size, mask = image_size(pair[0]), read_mask(pair[1])
        except BadImage as error:
            return "", f"cannot be read ({error.where}: {error.reason})"
        if mask.shape != size:
            (height, width), (rows, columns) = size, mask.shape
            return "", f"is {columns} x {rows} pixels, its image {pair[0]} {width} x {height}"
        wrong = sorted({*np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()} & unknown)
        if wrong:
            return "", f"has the class id {listing(wrong)}, and there are {classes} classes"
        return sha256(mask.tobytes()).hexdigest(), ""

    unknown = {*np.flatnonzero(values == _UNKNOWN).tolist()}
    # threads, because Pillow decodes without the interpreter's lock
    with ThreadPoolExecutor(8) as pool, progress_bar() as bar:
        task = bar.add_task(f"checking {split} masks", total=len(pairs), note="")
        for (image, mask), (digest, reason) in zip(pairs, pool.map(check, pairs), strict=True):
            bar.update(task, advance=1)
            if reason:
                problems.add(mask, reason)
            else:
                yield image, mask, digest


def _values(meaning: dict[int, int]) -> NDArray[np.uint8]:
    table = np.full(256, _UNKNOWN, np.uint8)
    table[IGNORED] = IGNORED
    for value, index in meaning.items():
        table[value] = index
    return table


def _read_classes(path: Path) -> tuple[str, ...]:
    names = tuple(_lines(path))
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or len(names) > _UNKNOWN or twice:
        counted = f"names {len(names)} classes; masks hold 1 to {_UNKNOWN}"
        raise DiffLensError(f"{path} {f'names {listing(twice)} twice' if twice else counted}")
    return names


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DiffLensError(f"there is no {path}, which this layout needs; expected {_LAYOUTS}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DiffLensError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _common_folder(paths: list[Path]) -> Path:
    parents = {path.parent for path in paths}
    common = next(iter(parents))
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common
