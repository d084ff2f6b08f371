"""Few labels: subsets of a split by a fraction of every class, by a list of names, or balanced."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from difflens.data.split import ImageSplit, place_in_class
from difflens.errors import DiffLensError, listing, require
from difflens.noise import Stream, random_order

# what a line of a list may say of an image, in the order in which it is tried
_NAMES: tuple[Callable[[str], str], ...] = (
    str,
    lambda identity: identity.partition("/")[2],  # without train/
    lambda identity: identity.rpartition("/")[2],  # the file alone, as SimCLR's lists have it
)


def label_fraction(split: ImageSplit, fraction: float, seed: int, classes: Sequence[str]) -> ImageSplit:
    """The same fraction of every class: of n images round(fraction * n), halves up, chosen at random.

    The choice depends on `seed` and on the images' places in the full split alone, and a larger fraction contains
    every smaller one. Images keep their order and their noise.

    Args:
        fraction: in (0, 1].
        classes: names for messages, in the order of the labels.

    Raises:
        DiffLensError: the fraction is not in (0, 1], a class would be left without images, or there are no labels.
    """
    if not 0 < fraction <= 1:
        raise DiffLensError(f"the fraction of labels is {fraction:g}; it must be above 0 and at most 1")
    labels = _labels(split)
    counts = labels.bincount()
    wanted = (fraction * counts.double() + 0.5).floor().long()
    left_out = (counts > 0) & (wanted == 0)
    if left_out.any():
        # rounded up, so that what the message names does work
        enough = ceil(5000 / int(counts[left_out].min())) / 10000
        raise DiffLensError(
            f"a fraction of {fraction:g} leaves no image of {_named(left_out, classes)}; "
            f"the smallest that leaves one of every class is {enough:g}"
        )
    order = random_order(Stream.SUBSET, split.index, seed)
    chosen = order[place_in_class(labels[order]) < wanted[labels[order]]]
    return split.subset(chosen.sort().values)


def balanced(split: ImageSplit, count: int, seed: int) -> Tensor:
    """Rows of `count` images, or of all where there are fewer, from each class as many as from any other.

    Classes differ by at most one image unless they have too few. Without labels the choice is merely random. It
    depends on what `label_fraction` depends on, and a larger `count` contains every smaller one.

    Returns:
        (M,) long, ascending, M <= `count`.

    Raises:
        DiffLensError: `count` is below 1.
    """
    require(count=(count, 1, None))
    order = random_order(Stream.SUBSET, split.index, seed)
    if split.labels is not None:
        # first of all classes the first image, then of all the second, and so on
        order = order[place_in_class(split.labels[order]).argsort(stable=True)]
    return order[:count].sort().values


def label_list(split: ImageSplit, path: Path, classes: Sequence[str]) -> ImageSplit:
    """The images that a text file names, one on a line.

    A name is the image's whole id, the id without its first folder (train/), or the file's name alone; the first of
    these that fits counts. Blank lines are passed over. Images keep their order in the split and their noise.

    Args:
        classes: names for messages, in the order of the labels.

    Raises:
        DiffLensError: the file is missing, not text or empty, a name is not in the split or could be several of its
            images, an image is named twice, a class would be left without images, or there are no labels.
    """
    labels = _labels(split)
    lines = _lines(path)
    found = _find(split.ids, set(lines.values()))
    unknown = [name for name in lines.values() if name not in found]
    if unknown:
        raise DiffLensError(
            f"{len(unknown)} of the {len(lines)} names in {path} are not in the split {split.name}: "
            f"{listing(unknown)}; its images are called {listing(split.ids, limit=1)}"
        )
    named: dict[int, int] = {}
    for number, name in lines.items():
        if len(found[name]) > 1:
            several = listing([split.ids[row] for row in found[name]])
            raise DiffLensError(f"{path}, line {number}: {name} could be any of {several}; add the folder")
        row = found[name][0]
        if row in named:
            raise DiffLensError(f"{path}, line {number}: {name} is in line {named[row]} already")
        named[row] = number
    rows = torch.tensor(sorted(named))
    left_out = (labels.bincount() > 0) & (labels[rows].bincount(minlength=int(labels.max()) + 1) == 0)
    if left_out.any():
        raise DiffLensError(f"{path} names no image of {_named(left_out, classes)}; every class needs one")
    return split.subset(rows)


def _lines(path: Path) -> dict[int, str]:
    """The names in a list by their line numbers."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise DiffLensError(f"cannot read the list of labelled images {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DiffLensError(f"{path} is not a text file in UTF-8; expected an image name a line") from error
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        raise DiffLensError(f"{path} is empty; expected an image name a line")
    return lines


def _find(ids: Sequence[str], wanted: set[str]) -> dict[str, list[int]]:
    """The rows that each of the names `wanted` fits; names that fit none are left out."""
    found: dict[str, list[int]] = {}
    for shorten in _NAMES:
        missing = wanted - found.keys()
        if not missing:
            break
        for row, identity in enumerate(ids):
            if (name := shorten(identity)) in missing:
                found.setdefault(name, []).append(row)
    return found


def _labels(split: ImageSplit) -> Tensor:
    if split.labels is None:
        raise DiffLensError(f"the split {split.name} has no labels to choose from")
    return split.labels


def _named(chosen: Tensor, classes: Sequence[str]) -> str:
    return listing([classes[label] for label in chosen.nonzero()[:, 0].tolist()])
