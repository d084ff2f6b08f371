"""The result of `difflens sweep`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from difflens.configs.command_line import next_commands
from difflens.errors import counted, named, plural
from difflens.metrics.recommendation import Recommendation
from difflens.processes.base import Level, in_words
from difflens.ranges import Natural, Share
from difflens.results.base import Result, fields_in, plain, skipped
from difflens.run.reading import checked, field_in

# the names that version 0.1 gave to cross-validated accuracies
_FORMER = {
    "honest": "cross_validated",
    "honest_interval": "cross_validated_interval",
    "fusion_honest": "fusion_cross_validated",
    "fusion_honest_interval": "fusion_cross_validated_interval",
}


def read_recommendation(metrics: Mapping[str, Any]) -> Recommendation:
    """Read a recommendation from metrics.json of this version or of an earlier one."""
    return checked(Recommendation, {_FORMER.get(key, key): value for key, value in metrics.items()})


def describe(best: Recommendation, log_snr: Mapping[Level, float | None], images: int) -> str:
    """Return a recommendation in words.

    Args:
        log_snr: by noise step; None is not shown.
        images: number of validation images.
    """
    low, high = (100 * bound for bound in best.interval)
    cross_low, cross_high = (100 * bound for bound in best.cross_validated_interval)
    text = (
        f"Block {best.block} at noise step {_words((best.noise_step,), log_snr)} classifies "
        f"{100 * best.top1:.2f} % of {counted(images, 'validation image')} correctly (95 % interval "
        f"{low:.2f} to "
        f"{high:.2f}). The place was chosen on these images, which makes this figure too high. "
        f"Cross-validated over two halves of the images, it is {100 * best.cross_validated:.2f} % "
        f"({cross_low:.2f} to {cross_high:.2f})."
    )
    if best.cheaper is not None:
        block, t = best.cheaper
        text += (
            f" Block {block} at noise step {_words((t,), log_snr)} costs less, and its accuracy on "
            "these images does not differ significantly from the best."
        )
    return text


def _words(steps: Sequence[Level], log_snr: Mapping[Level, float | None]) -> str:
    return in_words({t: log_snr[t] for t in log_snr if t in steps})


@dataclass(frozen=True, kw_only=True)
class SweepResult(Result):
    """The result of `sweep`.

    Attributes:
        out: the run directory.
        accuracy: (T, B) shares in [0, 1], by classifier.
        blocks, noise_steps: the B columns and the T rows of `accuracy`, from the least to the most noise.
        log_snr: natural logarithm of signal^2 / noise^2 at the T noise steps; None where it is infinite, or
            not known because the run is of an earlier version.
        not_measured: noise steps that a time budget left out.
        images, validation_images: number of training images that were read, and of those among them that
            validate.
        recommendation: the place and the fusion that the first classifier recommends.
        commands: the command lines to run next.
        skipped_images: a line for each image that could not be read.
        images_by_place: (T, B) numbers of images behind each accuracy of a sweep that halves; None: `images`
            everywhere.
    """

    out: Path
    accuracy: Mapping[str, Tensor]
    blocks: tuple[int, ...]
    noise_steps: tuple[Level, ...]
    log_snr: tuple[float | None, ...]
    not_measured: tuple[Level, ...]
    images: Natural
    validation_images: Natural
    recommendation: Recommendation
    commands: tuple[str, ...]
    skipped_images: tuple[str, ...]
    images_by_place: Tensor | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        halved = {} if self.images_by_place is None else {"images_by_place": plain(self.images_by_place)}
        return {
            "accuracy": plain(self.accuracy),
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "log_snr": plain(self.log_snr),
            "not_measured": plain(self.not_measured),
            "images": self.images,
            "validation_images": self.validation_images,
            "recommended": plain(self.recommendation),
            "next": plain(self.commands),
            "skipped_images": plain(self.skipped_images),
            **halved,
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the run directory `out`, in this version or in an earlier one."""
        rows = field_in(metrics, "accuracy", dict[str, list[list[Share]]])
        unknown = {"log_snr": [None] * len(field_in(metrics, "noise_steps", list[Level]))}
        known = ("out", "accuracy", "recommendation", "commands", "images_by_place")
        images = None
        if "images_by_place" in metrics:
            images = torch.tensor(field_in(metrics, "images_by_place", list[list[Natural]]))
        return cls(
            **fields_in(cls, unknown | {**metrics}, *known),
            out=out,
            accuracy={name: torch.tensor(table, dtype=torch.float64) for name, table in rows.items()},
            recommendation=read_recommendation(field_in(metrics, "recommended", dict[str, Any])),
            commands=field_in(metrics, "next", tuple[str, ...]),
            images_by_place=images,
        )

    def summary(self) -> str:
        best = self.recommendation
        log_snr = dict(zip(self.noise_steps, self.log_snr, strict=True))
        steps = _words(best.fusion_noise_steps, log_snr)
        lines = [
            f"Recommended: {describe(best, log_snr, self.validation_images)}",
            f"For DifFormer: {named('block', best.fusion_blocks)} at "
            f"{plural('noise step', len(best.fusion_noise_steps))} {steps}",
            f"Report: {self.out / 'report.html'}, heat map: {self.out / 'heatmap.png'}",
            *next_commands(self.commands),
        ]
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
