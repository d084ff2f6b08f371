"""Subsets of a split: a limit, a balanced number, a fraction of each class, or a list of names."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from difflens.data.files import read_lines
from difflens.data.split import ImageData, ImageSplit, class_sizes, place_in_class, strata
from difflens.errors import DiffLensError, counted, expanded, listing, require
from difflens.noise import Stream, random_order
from difflens.run.console import note

# the forms of an image's name that a list may contain, in the order in which they are tried
_NAMES: tuple[Callable[[str], str], ...] = (
    str,
    lambda identity: identity.partition("/")[2],  # without train/
    lambda identity: identity.rpartition("/")[2],  # the file name alone, as in SimCLR's lists
)


def label_fraction(split: ImageSplit, fraction: float, seed: int, classes: Sequence[str]) -> ImageSplit:
    """Return a random subset with the same fraction of each class: round(fraction * n) of n images, halves
    up.

    The choice depends only on `seed` and on the positions of the images in the full split. A larger fraction
    contains each smaller one. Images keep their order and their noise.

    Args:
        fraction: the share of each class, in (0, 1].
        classes: the names of the classes for messages, in the order of the labels.

    Raises:
        DiffLensError: the fraction is not in (0, 1], a class would be left without images, or there are no
            labels, or several an image.
    """
    if not 0 < fraction <= 1:
        raise DiffLensError(f"the fraction of labels is {fraction:g}; it must be above 0 and at most 1")
    labels = _labels(split)
    if split.multi_label:
        raise DiffLensError(
            "a fraction of each class takes one label an image, and these images have several: name the "
            "images with --label-list, or draw some with --limit"
        )
    counts = labels.bincount()
    wanted = (fraction * counts.double() + 0.5).floor().long()
    left_out = (counts > 0) & (wanted == 0)
    if left_out.any():
        # rounded up, so that the fraction in the message is large enough
        enough = ceil(5000 / int(counts[left_out].min())) / 10000
        raise DiffLensError(
            f"a fraction of {fraction:g} leaves no image of {_named(left_out, classes)}; "
            f"the smallest that leaves one of every class is {enough:g}"
        )
    order = random_order(Stream.SUBSET, split.index, seed)
    chosen = order[place_in_class(labels[order]) < wanted[labels[order]]]
    return split.subset(chosen.sort().values)


def balanced(split: ImageSplit, count: int, seed: int) -> Tensor:
    """Choose `count` images at random, equally many of each class; all images if there are fewer.

    Images with several labels are drawn by their `strata`, so rare classes come first. Numbers differ by at
    most one image, unless a class has too few. Without labels the choice ignores classes. It depends only on
    `seed` and on the positions in the full split. A larger `count` contains each smaller one.

    Returns:
        (M,) long: positions in the split, ascending, M <= `count`.

    Raises:
        DiffLensError: `count` is below 1.
    """
    require(count=(count, 1, None))
    order = random_order(Stream.SUBSET, split.index, seed)
    if split.labels is not None:
        # round robin: the first image of each class, then the second of each, and so on
        order = order[place_in_class(strata(split.labels)[order]).argsort(stable=True)]
    return order[:count].sort().values


def limited(split: ImageSplit, count: int | None, seed: int) -> ImageSplit:
    """Return at most `count` images by the rules of `balanced`, and say how many of each class.

    All images are returned, and nothing is said, if there are no more or `count` is None.
    """
    if count is None or count >= len(split):
        return split
    chosen = split.subset(balanced(split, count, seed))
    shares = ""
    if split.labels is not None:
        assert chosen.labels is not None
        kinds = split.labels.shape[1] if split.multi_label else int(split.labels.max()) + 1
        there, counts = (class_sizes(each, kinds) for each in (split.labels, chosen.labels))
        kinds, counts = int((there > 0).sum()), counts[counts > 0]
        least, most = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
        number = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        classes = (
            counted(kinds, "class")
            if len(counts) == kinds
            else f"{len(counts):,} of {counted(kinds, 'class')}"
        )
        shares = f", {number} of each of {classes}"
    note(f"{split.name}: {count:,} of {counted(len(split), 'image')}, drawn by the seed{shares}")
    return chosen


def say_few(split: ImageSplit, classes: Sequence[str]) -> None:
    """Name the classes of which there is one training image, or none: recipes need more.

    A single image is trained on, and no held-out part, no grid and no choice of k can measure it.

    Raises:
        DiffLensError: images have several labels, and no image has one of the classes.
    """
    counts = class_sizes(_labels(split), len(classes))
    if split.multi_label and not counts.all():
        raise DiffLensError(f"{split.name}: no training image has {_label(counts == 0, classes)}")
    for count, kind in ((0, "no training image"), (1, "a single training image")):
        if (counts == count).any():
            note(f"{split.name}: {kind} of {_named(counts == count, classes)}")


def say_unmeasured(split: ImageSplit, classes: Sequence[str]) -> None:
    """Name the classes that no image of a split with several labels an image has.

    Raises:
        DiffLensError: no image has any class, so that nothing could be measured.
    """
    absent = class_sizes(_labels(split), len(classes)) == 0
    if absent.all():
        raise DiffLensError(f"{split.name}: no image has a label, so nothing can be measured")
    if absent.any():
        them = "it" if absent.sum() == 1 else "them"
        note(f"{split.name}: no image has {_label(absent, classes)}: the mean leaves {them} out")


def one_label(data: ImageData, reader: str) -> ImageData:
    """Return `data`, or raise DiffLensError if its images have several labels.

    Args:
        reader: what reads one label an image, for the message.
    """
    if data.multi_label:
        raise DiffLensError(f"{reader} reads one label an image; {data.spec} has several")
    return data


def several_classes(data: ImageData, reader: str) -> ImageData:
    """Return `data`, or raise DiffLensError if it has one class, so nothing to tell apart.

    Args:
        reader: what tells classes apart, for the message.
    """
    if len(data.classes) == 1 and not data.multi_label:
        raise DiffLensError(f"{data.name} has one class, {data.classes[0]!r}: {reader} tells several apart")
    return data


def label_list(split: ImageSplit, path: Path, classes: Sequence[str]) -> ImageSplit:
    """Return the images that a text file names, one a line.

    A name is the image's whole id, the id without its first folder (train/), or the file name alone; the
    first form that matches counts. Blank lines are ignored. Images keep their order in the split and their
    noise.

    Args:
        classes: the names of the classes for messages, in the order of the labels.

    Raises:
        DiffLensError: the file is missing, not text or empty; a name is not in the split, or matches several
            images; an image is named twice; a class is left without images; or the split has no labels.
    """
    labels = _labels(split)
    lines = _lines(path)
    rows_of = _find(split.ids, set(lines.values()))
    unknown = [name for name in lines.values() if name not in rows_of]
    if unknown:
        raise DiffLensError(
            f"{len(unknown)} of the {len(lines)} names in {path} are not in the split {split.name}: "
            f"{listing(unknown)}; its images are called {listing(split.ids, limit=1)}"
        )
    line_of: dict[int, int] = {}
    for number, name in lines.items():
        if len(rows_of[name]) > 1:
            several = listing([split.ids[row] for row in rows_of[name]])
            raise DiffLensError(f"{path}, line {number}: {name} could be any of {several}; add the folder")
        row = rows_of[name][0]
        if row in line_of:
            raise DiffLensError(f"{path}, line {number}: {name} is in line {line_of[row]} already")
        line_of[row] = number
    rows = torch.tensor(sorted(line_of))
    there, kept = (class_sizes(each, len(classes)) for each in (labels, labels[rows]))
    left_out = (there > 0) & (kept == 0)
    if left_out.any():
        raise DiffLensError(f"{path} names no image of {_named(left_out, classes)}; every class needs one")
    return split.subset(rows)


def _lines(path: Path) -> dict[int, str]:
    """Return the names in a list by their line numbers, from 1."""
    found = read_lines(expanded(path), "an image name a line", files=True)
    lines = {number: line for number, line in enumerate(found, 1) if line}
    if not lines:
        raise DiffLensError(f"{path} is empty; expected an image name a line")
    return lines


def _find(ids: Sequence[str], wanted: set[str]) -> dict[str, list[int]]:
    """Return the rows that match each of the names `wanted`; names without a match are missing."""
    rows_of: dict[str, list[int]] = {}
    for shorten in _NAMES:
        missing = wanted - rows_of.keys()
        if not missing:
            break
        for row, identity in enumerate(ids):
            if (name := shorten(identity)) in missing:
                rows_of.setdefault(name, []).append(row)
    return rows_of


def _labels(split: ImageSplit) -> Tensor:
    if split.labels is None:
        raise DiffLensError(f"the split {split.name} has no labels to choose from")
    return split.labels


def _label(chosen: Tensor, classes: Sequence[str]) -> str:
    return f"{'the label' if chosen.sum() == 1 else 'any of the labels'} {_named(chosen, classes)}"


def _named(chosen: Tensor, classes: Sequence[str]) -> str:
    return listing([classes[label] for label in chosen.nonzero()[:, 0].tolist()])
