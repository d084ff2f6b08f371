"""Dense labels: the data set that every source gives, its objects, and the list of bad annotations."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from difflens.choices import Exif, OnBadAnnotation
from difflens.data.images import image_size
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted, listing

IGNORED = 255
"""The value of mask pixels that belong to no class. Losses and metrics leave them out."""


@dataclass
class Problems:
    """A list of bad annotations, so that one error names all of them.

    Attributes:
        on_bad: "error" raises an error in `settle`; "skip" leaves the annotations out.
        lines: one line an annotation, "FILE, ENTRY: REASON".
    """

    on_bad: OnBadAnnotation
    lines: list[str] = field(default_factory=list)

    def add(self, where: object, reason: str) -> None:
        """Note that the annotation at `where`, a file and an entry, is bad for this `reason`."""
        self.lines.append(f"{where}: {reason}")

    def settle(self) -> None:
        """Raise DiffLensError if there are bad annotations and `on_bad` is "error"."""
        if self.lines and self.on_bad == "error":
            count = counted(len(self.lines), "bad annotation") if len(self.lines) > 1 else "bad annotation"
            first = "; ".join([*self.lines[:5], *(["..."] if len(self.lines) > 5 else [])])
            raise DiffLensError(
                f"{count}: {first}. Correct them, or leave them out with --on-bad-annotation skip."
            )


@dataclass(frozen=True)
class Objects:
    """The objects of an image, annotated or predicted.

    Attributes:
        boxes: (N, 4) float32: left, top, right, bottom in pixels.
        labels: (N,) long: classes, counted from 1.
        scores: (N,) in [0, 1]; None for annotated objects.
        masks: (N, H, W) bool; None for boxes alone.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None


S = TypeVar("S", bound=FileSplit)


@dataclass(frozen=True)
class DenseData(Generic[S]):
    """A data set with dense labels, to train on and to evaluate on.

    Attributes:
        name: the title in tables and reports.
        classes: the names of the classes. Masks count them from 0; objects count them from 1, without a
            background.
        train: the training images.
        val: the validation images.
        bad: one line for each annotation that was left out.
        notes: lines about what is unusual but may be right.
    """

    name: str
    classes: tuple[str, ...]
    train: S
    val: S
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hex digest, equal for equal classes, images and annotations."""
        parts = (*self.classes, self.train.fingerprint(), self.val.fingerprint())
        return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()

    def former_fingerprint(self) -> str:
        """Return the fingerprint of version 0.1, which takes images by name and size."""
        parts = (*self.classes, self.train.former_fingerprint(), self.val.former_fingerprint())
        return sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def distinct(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of classes by their ids; a name that several classes have gets the id behind it."""
    counts = Counter(names.values())
    return tuple(name if counts[name] == 1 else f"{name} ({k})" for k, name in names.items())


def misfit(size: tuple[int, int], path: Path, exif: Exif) -> str:
    """Return a hint for an image whose labels have another size, if it is due to EXIF orientation; else "".

    Args:
        size: the (height, width) of the labels.
        path: the image file, which can be read.
    """
    other: Exif = "ignore" if exif == "apply" else "apply"
    if image_size(path, other) != size:
        return ""
    drawn = "its pixels as they are stored" if other == "ignore" else "the upright image"
    return f"; its EXIF orientation turns it, and the size is that of {drawn}: give --exif {other}"


def turned(count: int, exif: Exif) -> tuple[str, ...]:
    """Return the line about `count` images that have an EXIF orientation; none for no image."""
    if not count:
        return ()
    rule = (
        "turned upright, and labels taken as drawn on the upright image"
        if exif == "apply"
        else "read as stored, and labels taken as drawn on the stored pixels"
    )
    return (f"images with an EXIF orientation: {count:,}, {rule} (--exif {exif})",)


def require_entries(split: str, ids: Iterable[object], where: object, problems: Problems) -> None:
    """Raise DiffLensError if `ids` is empty, so no image of the split is left.

    Args:
        where: the file or the data set, for the message.
    """
    if not list(ids):
        why = f"; left out: {listing(problems.lines, 3)}" if problems.lines else ""
        raise DiffLensError(f"{where} has no {split} images with annotations{why}")
