"""The result of `difflens scenes`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from difflens.errors import counted, listing
from difflens.ranges import Natural
from difflens.results.base import Result, plain
from difflens.run.reading import field_in

_COUNTS = ("scenes", "instances", "cutouts")


@dataclass(frozen=True)
class SplitCounts:
    """The size of one split.

    Attributes:
        scenes: number of scenes.
        instances: number of objects in the scenes.
        cutouts: number of cut-outs that the objects were made from.
    """

    scenes: Natural
    instances: Natural
    cutouts: Natural


@dataclass(frozen=True, kw_only=True)
class ScenesResult(Result):
    """The result of `scenes`.

    Attributes:
        out: the folder of the data set.
        classes: their names, in the order of the values in the masks.
        train, val: the sizes of the splits.
        skipped: a line for each file or class of the source that could not be used.
    """

    out: Path
    classes: tuple[str, ...]
    train: SplitCounts
    val: SplitCounts
    skipped: tuple[str, ...]

    @property
    def splits(self) -> dict[str, SplitCounts]:
        """The sizes of the splits by "train" and "val"."""
        return {"train": self.train, "val": self.val}

    def metrics(self) -> dict[str, Any]:
        """Plain values for scenes.json."""
        counts = {
            f"{split}_{key}": count
            for split, size in self.splits.items()
            for key, count in plain(size).items()
        }
        return {"classes": list(self.classes), **counts, "left_out": list(self.skipped)}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the folder `out`."""
        train, val = (
            SplitCounts(*(field_in(metrics, f"{split}_{key}", Natural) for key in _COUNTS))
            for split in ("train", "val")
        )
        classes, left_out = (field_in(metrics, name, tuple[str, ...]) for name in ("classes", "left_out"))
        return cls(out=out, classes=classes, train=train, val=val, skipped=left_out)

    def summary(self) -> str:
        lines = [
            f"{split}: {counted(size.scenes, 'scene')} with {counted(size.instances, 'object')} of "
            f"{counted(len(self.classes), 'class')}, from {counted(size.cutouts, 'cut-out')}"
            for split, size in self.splits.items()
        ]
        return "\n".join([*lines, f"Data set: {self.out}"])

    def left_out(self) -> str:
        return f"left out {len(self.skipped)}: {listing(self.skipped, 5)}" if self.skipped else ""
