"""What every source of dense labels becomes: splits of images with a mask, or with objects, each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, listing

OnBadAnnotation = Literal["error", "skip"]

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


class MaskSplit(FileSplit):
    """Images with a mask of classes.

    Args:
        masks: the mask file of each image.
        values: (256,) uint8: what each value in a mask file means, a class or `IGNORED`.
        digest: of the content of the masks.
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
        """Classes, uint8 (H, W), of the size of image `i`; `IGNORED` where there is none."""
        from difflens.data.masks import read_mask

        return torch.from_numpy(self.values[read_mask(self.masks[i])])

    def fingerprint(self) -> str:
        return sha256(f"{super().fingerprint()}{self.digest}".encode()).hexdigest()


class ObjectSplit(FileSplit):
    """Images with objects.

    Args:
        record: a checked COCO record: images in the order of `ids`, annotations, categories.
        objects: the annotations of each image but crowds, which are not trained on.
        labels: class of each category id, from 1.
        masks: do all objects have masks?
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        root: Path,
        record: dict[str, Any],
        objects: Sequence[Sequence[Mapping[str, Any]]],
        labels: Mapping[int, int],
        masks: bool,
    ):
        super().__init__(name, ids, root=root)
        self.record, self.objects, self.label_of, self.has_masks = record, objects, labels, masks

    def target(self, i: int, masks: bool) -> dict[str, Tensor]:
        """The objects of image `i`: "boxes" (N, 4) float32, left, top, right, bottom in pixels; "labels" (N,) long,
        from 1; and with `masks` "masks" (N, H, W) bool."""
        from difflens.data.coco import decode

        found, image = self.objects[i], self.record["images"][i]
        corners = torch.tensor([each["bbox"] for each in found], dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        limit = torch.tensor([image["width"], image["height"]] * 2, dtype=torch.float32)
        target = {
            "boxes": torch.minimum(corners.clamp(min=0), limit),
            "labels": torch.tensor([self.label_of[each["category_id"]] for each in found], dtype=torch.long),
        }
        if masks:
            size = (image["height"], image["width"])
            shapes = [decode(each["segmentation"], size) for each in found]
            target["masks"] = (
                torch.from_numpy(np.stack(shapes)) if shapes else torch.zeros(0, *size, dtype=torch.bool)
            )
        return target

    def fingerprint(self) -> str:
        return sha256(f"{super().fingerprint()}{self.record}".encode()).hexdigest()


S = TypeVar("S", MaskSplit, ObjectSplit)


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
