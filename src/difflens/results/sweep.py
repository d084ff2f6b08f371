"""The result of `difflens sweep`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from difflens.errors import listing
from difflens.metrics.recommendation import Recommendation
from difflens.results.base import Result, plain, skipped, tuples

# the names that version 0.1 gave to cross-validated accuracies
_FORMER = {
    "honest": "cross_validated",
    "honest_interval": "cross_validated_interval",
    "fusion_honest": "fusion_cross_validated",
    "fusion_honest_interval": "fusion_cross_validated_interval",
}


def read_recommendation(metrics: Mapping[str, Any]) -> Recommendation:
    """Read a recommendation from metrics.json of this version or of an earlier one."""
    return Recommendation(**{_FORMER.get(key, key): tuples(value) for key, value in metrics.items()})


def describe(best: Recommendation, images: int) -> str:
    """Return a recommendation in words; `images` is the number of validation images."""
    low, high = (100 * bound for bound in best.interval)
    cross_low, cross_high = (100 * bound for bound in best.cross_validated_interval)
    text = (
        f"Block {best.block} at noise step {best.noise_step} classifies {100 * best.top1:.2f} % of "
        f"{images:,} validation images correctly (95 % interval {low:.2f} to {high:.2f}). The place was "
        "chosen on these images, so this figure is slightly too high. Cross-validated over two halves of "
        f"the images, it is {100 * best.cross_validated:.2f} % ({cross_low:.2f} to {cross_high:.2f})."
    )
    if best.cheaper is not None:
        block, t = best.cheaper
        text += (
            f" Block {block} at noise step {t} costs less, and its accuracy on these images does not differ "
            "significantly from the best."
        )
    return text


@dataclass(frozen=True, kw_only=True)
class SweepResult(Result):
    """The result of `sweep`.

    Attributes:
        out: the run directory.
        accuracy: (T, B) shares in [0, 1], by classifier.
        blocks, noise_steps: the B columns and the T rows of `accuracy`.
        not_measured: noise steps that a time budget left out.
        images, validation_images: number of training images that were read, and of those among them that
            validate.
        recommendation: the place and the fusion that the first classifier recommends.
        commands: the command lines to run next.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    accuracy: Mapping[str, Tensor]
    blocks: tuple[int, ...]
    noise_steps: tuple[int, ...]
    not_measured: tuple[int, ...]
    images: int
    validation_images: int
    recommendation: Recommendation
    commands: tuple[str, ...]
    skipped_images: tuple[str, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "accuracy": plain(self.accuracy),
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "not_measured": plain(self.not_measured),
            "images": self.images,
            "validation_images": self.validation_images,
            "recommended": plain(self.recommendation),
            "next": plain(self.commands),
            "skipped_images": plain(self.skipped_images),
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the run directory `out`, in this version or in an earlier one."""
        accuracy = {
            name: torch.tensor(rows, dtype=torch.float64) for name, rows in metrics["accuracy"].items()
        }
        return cls(
            out=out,
            accuracy=accuracy,
            blocks=tuple(metrics["blocks"]),
            noise_steps=tuple(metrics["noise_steps"]),
            not_measured=tuple(metrics["not_measured"]),
            images=metrics["images"],
            validation_images=metrics["validation_images"],
            recommendation=read_recommendation(metrics["recommended"]),
            commands=tuple(metrics["next"]),
            skipped_images=tuple(metrics["skipped_images"]),
        )

    def summary(self) -> str:
        best = self.recommendation
        steps = listing(best.fusion_noise_steps)
        lines = [
            f"Recommended: {describe(best, self.validation_images)}",
            f"For DifFormer: blocks {listing(best.fusion_blocks)} at noise steps {steps}",
            f"Report: {self.out / 'report.html'}, heat map: {self.out / 'heatmap.png'}",
            "Next:",
            *(f"  {command}" for command in self.commands),
        ]
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
