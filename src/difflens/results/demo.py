"""The result of `difflens demo`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from difflens.ranges import Natural, NonNegative, Share
from difflens.results.base import Result, fields_in, plain
from difflens.run.console import table_text
from difflens.run.reading import field_in


@dataclass(frozen=True, kw_only=True)
class DemoScore:
    """The accuracy of one head, and its cost.

    Attributes:
        top1, top1_interval_95: accuracy on the test images, in [0, 1], and its 95 % interval.
        trainable_parameters: number of parameters that were trained.
        train_seconds: seconds of training, without reading features.
    """

    top1: Share
    top1_interval_95: tuple[Share, Share]
    trainable_parameters: Natural
    train_seconds: NonNegative

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True, kw_only=True)
class DemoResult(Result):
    """The result of `demo`.

    Attributes:
        out: the run directory.
        results: by head, and by baseline: "pixels" and "random_backbone".
        seconds: seconds since the run was started or, at last, resumed.
        train_images, test_images: how many were read.
        best: the head with the highest accuracy.
        saved_head: the head that model/ holds.
    """

    out: Path
    results: Mapping[str, DemoScore]
    seconds: NonNegative
    train_images: Natural
    test_images: Natural
    best: str
    saved_head: str

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "results": plain(self.results),
            "seconds": self.seconds,
            "train_images": self.train_images,
            "test_images": self.test_images,
            "best": self.best,
            "model": self.saved_head,
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the run directory `out`."""
        values = fields_in(cls, metrics, "out", "saved_head")
        return cls(**values, saved_head=field_in(metrics, "model", str), out=out)

    def summary(self) -> str:
        table = Table("features and head", "top-1", "trainable parameters", "training seconds")
        for name, row in self.results.items():
            table.add_row(
                name, f"{100 * row.top1:.1f} %", f"{row.trainable_parameters:,}", f"{row.train_seconds:.0f}"
            )
        return f"{table_text(table)}\nReport: {self.out / 'report.html'}"
