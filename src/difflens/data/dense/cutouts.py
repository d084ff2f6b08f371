"""Cut-outs: objects without a background, by class, from which scenes are composed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from difflens.data.files import find_images
from difflens.data.images import eight_bit, open_image
from difflens.data.sources.idx import load_fashion
from difflens.errors import DiffLensError, counted, listing

VAL_EVERY = 5
"""Every fifth object of a class is for validation scenes."""

_EDGE = 16  # a lower alpha is the fringe of a shadow, not an object
_CLOTH = 12  # a lower grey value is the black around an item of Fashion-MNIST
_Content = tuple[tuple[int, int], bytes]
# suffixes by which Tux Paint and others name further views of one object
_VIEWS = ("_mirror", "_flip", "_mirror_flip")


@dataclass(frozen=True)
class Cutouts:
    """Objects to paste, by class.

    Attributes:
        classes: the names of the classes.
        train, val: the objects of each class, none of them in both: Pillow images of mode LA or RGBA, cropped
            to their opaque part.
        left_out: one line for each file or class that could not be used.
    """

    classes: tuple[str, ...]
    train: tuple[tuple[Image.Image, ...], ...]
    val: tuple[tuple[Image.Image, ...], ...]
    left_out: tuple[str, ...] = ()


def fashion_cutouts() -> Cutouts:
    """Return the bundled Fashion-MNIST items without their black background: training images as `train`, test
    as `val`."""
    data = load_fashion()
    parts: list[tuple[tuple[Image.Image, ...], ...]] = []
    for split in (data.train, data.test):
        assert split.pixels is not None
        assert split.labels is not None
        items: list[list[Image.Image]] = [[] for _ in data.classes]
        for pixels, label in zip(_cut(split.pixels).numpy(), split.labels.tolist(), strict=True):
            items[label].append(_cropped(Image.fromarray(pixels, "LA")))
        parts.append(tuple(map(tuple, items)))
    return Cutouts(data.classes, parts[0], parts[1])


def folder_cutouts(root: Path) -> Cutouts:
    """Return the images with transparency in `root`/CLASS/ and below; every fifth object of a class is for
    validation.

    All views of one object (names that end in `_mirror` or `_flip`, as in Tux Paint) are in the same split. A
    copy of an object under another name is left out.

    Raises:
        DiffLensError: there is no such folder, or no class in it with two objects.
    """
    if not root.is_dir():
        raise DiffLensError(
            f"no such folder: {root}; cut-outs lie in FOLDER/CLASS/, or give --source fashion"
        )
    classes: list[str] = []
    parts: list[list[tuple[Image.Image, ...]]] = []
    left_out: list[str] = []
    seen: dict[_Content, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        objects = [views for views in _objects(folder, seen, left_out) if views]
        if len(objects) < 2:
            left_out.append(
                f"{folder}: {counted(len(objects), 'object')} with transparency, and two are needed"
            )
            continue
        every = min(VAL_EVERY, len(objects))
        sides: tuple[list[Image.Image], list[Image.Image]] = ([], [])
        for number, views in enumerate(objects):
            sides[number % every == every - 1].extend(views)
        classes.append(folder.name)
        parts.append([tuple(views) for views in sides])
    if not classes:
        raise DiffLensError(
            f"{root} has no class folder with at least two images with transparency: {listing(left_out, 3)}"
        )
    train, val = (tuple(part[side] for part in parts) for side in (0, 1))
    return Cutouts(tuple(classes), train, val, tuple(left_out))


def _objects(folder: Path, seen: dict[_Content, Path], left_out: list[str]) -> Iterator[list[Image.Image]]:
    """Yield the cut-outs of each object in the folder, one for each view.

    Args:
        seen: the pixels of the objects so far, and their files; this function adds to it.
        left_out: receives one line for each file that cannot be used.
    """
    views: dict[tuple[Path, str], list[Path]] = {}
    try:
        paths = find_images(folder)
    except DiffLensError:
        paths = []
    for path in paths:
        stem = path.stem
        for suffix in sorted(_VIEWS, key=len, reverse=True):
            stem = stem.removesuffix(suffix)
        views.setdefault((path.parent, stem), []).append(path)
    for paths in views.values():
        cutouts = {}
        for path in paths:
            try:
                image = eight_bit(open_image(path))
            except DiffLensError as error:
                left_out.append(str(error))
                continue
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            if alpha.min() >= 255 - _EDGE or alpha.max() < 128:
                reason = "opaque everywhere" if alpha.max() >= 128 else "nearly invisible"
                left_out.append(f"{path}: {reason}")
                continue
            item = _cropped(image.convert("RGBA"))
            # a copy in another class could be a training object there and a validation object here
            if _content(item) in seen:
                left_out.append(f"{path}: the same pixels as {seen[_content(item)]}")
                continue
            cutouts[path] = item
        seen |= {_content(item): path for path, item in cutouts.items()}
        yield [*cutouts.values()]


def _content(item: Image.Image) -> _Content:
    return item.size, item.tobytes()


def _cut(images: torch.Tensor) -> torch.Tensor:
    """Return grey and alpha, uint8 (N, H, W, 2), of bright objects on black, uint8 (N, 1, H, W).

    Small dark gaps within an object belong to it (morphological closing). The pixels of its rim are a mixture
    of the object and the black around it: their grey is that of the brightest neighbour, their alpha the
    share of it.
    """
    bright = images.float()
    solid = (bright > _CLOTH).float()
    closed = torch.maximum(solid, _eroded(F.max_pool2d(solid, 3, stride=1, padding=1)))
    rim = (closed > _eroded(closed)) & (solid > 0)
    neighbour = F.max_pool2d(bright, 3, stride=1, padding=1)
    grey = torch.where(rim, neighbour, bright)
    alpha = 255 * torch.where(rim, bright / neighbour.clamp(min=1), closed)
    return torch.cat([grey, alpha], 1).round().to(torch.uint8).permute(0, 2, 3, 1)


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    return -F.max_pool2d(-F.pad(mask, (1,) * 4), 3, stride=1)


def _cropped(image: Image.Image) -> Image.Image:
    solid = np.asarray(image.getchannel("A")) >= _EDGE
    rows, columns = (np.flatnonzero(solid.any(axis)).tolist() for axis in (1, 0))
    return image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) if len(rows) else image
