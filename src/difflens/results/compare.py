"""The result of `difflens compare`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.table import Column, Table

from difflens.results.base import Result, tuples
from difflens.run.console import table_text

if TYPE_CHECKING:
    from difflens.backbones.maps import Place


@dataclass(frozen=True)
class Score:
    """An accuracy, a share in [0, 1], with its 95 % interval, or of several seeds with their standard deviation."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class BackboneScores:
    """One backbone and how it did.

    Attributes:
        name: its spec.
        place: where it was read, block and noise step.
        parameters: of the whole backbone, without heads.
        relative_speed: images per second of reading its features, over those of the first backbone.
        scores: by trial.
        differences: by trial, from the first backbone's top-1 on the same test images, in the first seed: shares, with
            the half-width of the 95 % interval.
        frechet: Fréchet distance of its samples to test images; None: it draws none.
    """

    name: str
    place: "Place"
    parameters: int
    relative_speed: float
    scores: Mapping[str, Score]
    differences: Mapping[str, tuple[float, float]]
    frechet: float | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "backbone": self.name,
            "block": self.place[0],
            "noise_step": self.place[1],
            "parameters": self.parameters,
            "relative_speed": round(self.relative_speed, 3),
            "frechet_distance": self.frechet,
            "accuracy": {key: score.value for key, score in self.scores.items()},
            "interval": {key: list(score.interval) for key, score in self.scores.items()},
            "difference_from_first": {key: list(pair) for key, pair in self.differences.items()},
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """What `metrics` wrote; the relative speed is rounded to three digits."""
        return cls(
            metrics["backbone"],
            (metrics["block"], metrics["noise_step"]),
            metrics["parameters"],
            metrics["relative_speed"],
            {
                key: Score(value, tuples(metrics["interval"][key]))
                for key, value in metrics["accuracy"].items()
            },
            tuples(metrics["difference_from_first"]),
            metrics["frechet_distance"],
        )


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """What `compare` returns.

    Attributes:
        out: the run directory.
        backbones: how each did, in the order of the configuration.
        titles: of the trials, by their keys.
        metric: the figure that is compared, "top1" or "mean_per_class".
        test_images: how many were scored.
        feature_space: where Fréchet distances were measured; None if nothing was drawn.
        samples: images that were drawn from each backbone that generates.
    """

    out: Path
    backbones: tuple[BackboneScores, ...]
    titles: Mapping[str, str]
    metric: str
    test_images: int
    feature_space: str | None
    samples: int

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "metric": self.metric,
            "test_images": self.test_images,
            "feature_space": self.feature_space,
            "samples": self.samples,
            "backbones": [each.metrics() for each in self.backbones],
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """What `metrics` wrote into the run directory `out`; trials are called by their keys."""
        backbones = tuple(BackboneScores.from_metrics(each) for each in metrics["backbones"])
        return cls(
            out=out,
            backbones=backbones,
            titles={key: key for key in backbones[0].scores},
            metric=metrics["metric"],
            test_images=metrics["test_images"],
            feature_space=metrics["feature_space"],
            samples=metrics["samples"],
        )

    def summary(self) -> str:
        table = Table(
            Column("backbone", overflow="fold"), *self.titles.values(), "parameters", "speed", "Fréchet",
            title="accuracy, %",
        )  # fmt: skip
        for each in self.backbones:
            table.add_row(
                each.name,
                *(f"{100 * score.value:.2f}" for score in each.scores.values()),
                f"{each.parameters:,}",
                f"{each.relative_speed:.2f}",
                "" if each.frechet is None else f"{each.frechet:.4g}",
            )
        return f"{table_text(table)}\nReport: {self.out / 'report.html'}, plot: {self.out / 'compare.png'}"
