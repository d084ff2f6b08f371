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

# what version 0.1 called an accuracy on images that did not choose
_FORMER = {
    "honest": "cross_validated",
    "honest_interval": "cross_validated_interval",
    "fusion_honest": "fusion_cross_validated",
    "fusion_honest_interval": "fusion_cross_validated_interval",
}


def read_recommendation(metrics: Mapping[str, Any]) -> Recommendation:
    """A recommendation from metrics.json of this version or of an earlier one."""
    return Recommendation(**{_FORMER.get(key, key): tuples(value) for key, value in metrics.items()})


def describe(best: Recommendation, images: int) -> str:
    """A recommendation in words; `images` is the number of validation images."""
    low, high = (100 * bound for bound in best.interval)
    other_low, other_high = (100 * bound for bound in best.cross_validated_interval)
    text = (
        f"Block {best.block} at noise step {best.noise_step}: {100 * best.top1:.2f} % of {images:,} validation images "
        f"(95 % interval {low:.2f} to {high:.2f}). It was chosen on these images, so that is a little too good; when one "
        f"half of them chooses and the other half judges, {100 * best.cross_validated:.2f} % ({other_low:.2f} to "
        f"{other_high:.2f})."
    )
    if best.cheaper is not None:
        block, t = best.cheaper
        text += f" Block {block} at noise step {t} costs less, and these images do not tell it from the best."
    return text


@dataclass(frozen=True, kw_only=True)
class SweepResult(Result):
    """What `sweep` returns.

    Attributes:
        out: the run directory.
        accuracy: (T, B) by classifier, shares in [0, 1].
        blocks, noise_steps: of its columns and rows.
        not_measured: noise steps that a time budget left out.
        images, validation_images: training images that were read, and how many of them validate.
        recommendation: by the first classifier.
        commands: what to run next.
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
        values: dict[str, Any] = plain({
            "accuracy": self.accuracy,
            "blocks": self.blocks,
            "noise_steps": self.noise_steps,
            "not_measured": self.not_measured,
            "images": self.images,
            "validation_images": self.validation_images,
            "recommended": self.recommendation,
            "next": self.commands,
            "skipped_images": self.skipped_images,
        })  # fmt: skip
        return values

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """What `metrics` wrote into the run directory `out`, in this version or in an earlier one."""
        return cls(
            out=out,
            accuracy={
                name: torch.tensor(rows, dtype=torch.float64) for name, rows in metrics["accuracy"].items()
            },
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
        return "\n".join([
            f"Recommended: {describe(best, self.validation_images)}",
            f"For DifFormer: blocks {listing(best.fusion_blocks)} at noise steps {listing(best.fusion_noise_steps)}",
            f"Report: {self.out / 'report.html'}, heat map: {self.out / 'heatmap.png'}",
            "Next:",
            *(f"  {command}" for command in self.commands),
        ])  # fmt: skip

    def left_out(self) -> str:
        return skipped(self.skipped_images)
