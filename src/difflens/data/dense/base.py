"""What every source of dense labels becomes, and what is bad about its annotations."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Generic, TypeVar

from torch import Tensor

from difflens.choices import OnBadAnnotation
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, listing

IGNORED = 255
"""Value of pixels in a mask that belong to no class: neither trained on nor counted."""


@dataclass
class Problems:
    """Bad annotations: collected, so that all are known at once, and an error unless they are to be skipped.

    Attributes:
        lines: "file, entry: what is wrong with it", one for each.
    """

    on_bad: OnBadAnnotation
    lines: list[str] = field(default_factory=list)

    def add(self, where: object, what: str) -> None:
        self.lines.append(f"{where}: {what}")

    def settle(self) -> None:
        """DiffLensError if there are problems and they are not to be skipped."""
        if self.lines and self.on_bad == "error":
            count = f"{len(self.lines)} bad annotations" if len(self.lines) > 1 else "bad annotation"
            raise DiffLensError(
                f"{count}: {'; '.join(self.lines[:5])}{'; ...' if len(self.lines) > 5 else ''}. Correct them, or leave "
                "them out with --on-bad-annotation skip"
            )


@dataclass(frozen=True)
class Objects:
    """Objects in an image.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels.
        labels: (N,) long, from 1.
        scores: (N,) in [0, 1], or None for what is true.
        masks: (N, H, W) bool, or None.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None


S = TypeVar("S", bound=FileSplit)


@dataclass(frozen=True)
class DenseData(Generic[S]):
    """A densely labelled data set to train on and to evaluate on.

    Attributes:
        name: for tables and reports.
        classes: their names; of masks in the order of the values, of objects without a background.
        bad: a line for each annotation that was left out.
    """

    name: str
    classes: tuple[str, ...]
    train: S
    val: S
    bad: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Hex digest: equal for equal classes, image names and annotations."""
        parts = (*self.classes, self.train.fingerprint(), self.val.fingerprint())
        return sha256("\n".join(parts).encode()).hexdigest()


def require_entries(split: str, ids: Iterable[object], where: object, problems: Problems) -> None:
    """DiffLensError if nothing is left of a split."""
    if not list(ids):
        why = f"; left out: {listing(problems.lines, 3)}" if problems.lines else ""
        raise DiffLensError(f"{where} has no {split} images with annotations{why}")
