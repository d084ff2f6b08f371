"""The result of `difflens propagate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from difflens.processes.base import Level
from difflens.results.base import Result, plain
from difflens.run.console import table_text


@dataclass(frozen=True)
class ObjectScore:
    """How well the masks of one object agree, in [0, 1], as means over the measured frames.

    Attributes:
        j: intersection over union.
        f: agreement of the outlines.
    """

    j: float
    f: float


@dataclass(frozen=True)
class PropagatedSequence:
    """A sequence whose frames all have a mask now.

    Attributes:
        frames: their number.
        measured: number of frames, without the first, whose masks are known.
        objects: by value in the masks; empty where no frame is measured.
    """

    frames: int
    measured: int
    objects: Mapping[str, ObjectScore]


@dataclass(frozen=True, kw_only=True)
class PropagateResult(Result):
    """The result of `propagate`.

    Attributes:
        out: the run directory.
        block, noise_step: the place that was read.
        sequences: by name.
    """

    out: Path
    block: int
    noise_step: Level
    sequences: Mapping[str, PropagatedSequence]

    @property
    def overall(self) -> ObjectScore | None:
        """J and F as means over all objects; None where no frame is measured."""
        scores = [score for each in self.sequences.values() for score in each.objects.values()]
        if not scores:
            return None
        count = len(scores)
        return ObjectScore(sum(each.j for each in scores) / count, sum(each.f for each in scores) / count)

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "block": self.block,
            "noise_step": self.noise_step,
            "overall": plain(self.overall),
            "sequences": plain(self.sequences),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of a table, one line a sequence and one for all objects: shares in per cent."""
        rows = []
        for name, each in self.sequences.items():
            scores = list(each.objects.values())
            means = [sum(getattr(s, k) for s in scores) / len(scores) for k in ("j", "f")] if scores else []
            rows.append((name, f"{each.frames:,}", f"{each.measured:,}", str(len(scores)), *_percent(means)))
        if self.overall is not None:
            counts = [
                sum(each.frames for each in self.sequences.values()),
                sum(each.measured for each in self.sequences.values()),
                sum(len(each.objects) for each in self.sequences.values()),
            ]
            means = [self.overall.j, self.overall.f]
            rows.append(("all objects", *(f"{count:,}" for count in counts), *_percent(means)))
        return rows

    def summary(self) -> str:
        table = Table("sequence", "frames", "measured", "objects", "J", "F", "J&F")
        for row in self.rows():
            table.add_row(*row)
        return f"{table_text(table)}\nMasks: {self.out / 'masks'}, report: {self.out / 'report.html'}"


def _percent(means: list[float]) -> tuple[str, ...]:
    """Return J, F and their mean in per cent; dashes for none."""
    if not means:
        return ("-", "-", "-")
    return tuple(f"{100 * value:.1f}" for value in (*means, sum(means) / 2))
