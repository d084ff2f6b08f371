"""The result of `difflens suggest`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from difflens.configs.command_line import next_commands
from difflens.errors import counted, listing
from difflens.metrics.suggestion import Suggestion
from difflens.processes.base import Level, in_words
from difflens.ranges import Natural
from difflens.results.base import Result, fields_in, plain, skipped, without_nan
from difflens.run.reading import field_in


def describe(best: Suggestion, log_snr: Mapping[Level, float | None]) -> str:
    """Return a suggestion and its uncertainty in words.

    Args:
        log_snr: by noise step; None is not shown.
    """

    def words(block: int, t: Level) -> str:
        return f"block {block} at noise step {in_words({t: log_snr[t]})}"

    text = (
        f"B{words(best.block, best.noise_step)[1:]}. Of {best.halves} random halves of the images, "
        f"{best.agreeing} suggest the same place"
    )
    others = [
        f"{count} suggest{'s' * (count == 1)} {words(block, t)}"
        for block, t, count in best.places
        if (block, t) != (best.block, best.noise_step)
    ]
    return f"{text}, {listing(others)}." if others else f"{text}."


@dataclass(frozen=True, kw_only=True)
class SuggestResult(Result):
    """The result of `suggest`.

    Attributes:
        out: the run directory.
        statistics: (T, B) by name; NaN where a statistic does not exist.
        score: (T, B) in [0, 1], by which the place is chosen.
        blocks, noise_steps: the B columns and the T rows, from the least to the most noise.
        log_snr: natural logarithm of signal^2 / noise^2 at the T noise steps; None where it is infinite.
        images, passes: numbers of images, and of images x noise draws x noise steps that were read.
        suggestion: the place, and how sure it is.
        commands: the command lines to run next.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    statistics: Mapping[str, Tensor]
    score: Tensor
    blocks: tuple[int, ...]
    noise_steps: tuple[Level, ...]
    log_snr: tuple[float | None, ...]
    images: Natural
    passes: Natural
    suggestion: Suggestion
    commands: tuple[str, ...]
    skipped_images: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json; None where a statistic does not exist."""
        return {
            "statistics": without_nan(self.statistics),
            "score": plain(self.score),
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "log_snr": plain(self.log_snr),
            "images": self.images,
            "passes": self.passes,
            "suggested": plain(self.suggestion),
            "next": plain(self.commands),
            "skipped_images": plain(self.skipped_images),
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the run directory `out`."""
        rows = field_in(metrics, "statistics", dict[str, list[list[float | None]]])
        return cls(
            **fields_in(cls, metrics, "out", "statistics", "score", "suggestion", "commands"),
            out=out,
            statistics={name: _with_nan(table) for name, table in rows.items()},
            score=torch.tensor(field_in(metrics, "score", list[list[float]]), dtype=torch.float64),
            suggestion=field_in(metrics, "suggested", Suggestion),
            commands=field_in(metrics, "next", tuple[str, ...]),
        )

    def summary(self) -> str:
        log_snr = dict(zip(self.noise_steps, self.log_snr, strict=True))
        lines = [
            f"Suggested: {describe(self.suggestion, log_snr)} Without labels, from "
            f"{counted(self.images, 'image')}.",
            f"Report: {self.out / 'report.html'}, heat map: {self.out / 'heatmap.png'}",
            *next_commands(self.commands),
        ]
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)


def _with_nan(rows: list[list[float | None]]) -> Tensor:
    return torch.tensor(
        [[float("nan") if value is None else value for value in row] for row in rows], dtype=torch.float64
    )
