"""The result of `difflens compare`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.table import Column, Table

from difflens.processes.base import Level
from difflens.ranges import Natural, NonNegative, Share
from difflens.results.base import Result, fields_in
from difflens.run.console import table_text
from difflens.run.reading import FieldError, field_in

if TYPE_CHECKING:
    from difflens.backbones.maps import Place


GEOMETRY = ("effective_rank", "alignment", "uniformity", "cknna")
"""The measures of a backbone's features that need no labels."""


@dataclass(frozen=True)
class Score:
    """An accuracy with its uncertainty.

    Attributes:
        value: share in [0, 1], the mean over seeds.
        interval: 95 % interval of one seed; for several seeds, one standard deviation on either side of the
            mean.
    """

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class BackboneScores:
    """The scores of one backbone.

    Attributes:
        name: its spec.
        place: block and noise step that the heads read.
        parameters: number of parameters of the whole backbone, without heads.
        relative_speed: images per second that are read, divided by those of the first backbone.
        scores: by key of the trial.
        differences: by key of the trial, the top-1 accuracy minus that of the first backbone, on the same
            test images in the first seed: a share and the half-width of its 95 % interval.
        frechet: Fréchet distance of its samples to test images; None for a backbone that generates none.
        log_snr: natural logarithm of signal^2 / noise^2 at the place's noise step; None where it is infinite,
            or not known because the run is of an earlier version.
        effective_rank: effective rank (RankMe, Garrido et al., 2023) of the place's maps, averaged over
            positions, from 1 to the number of channels; None where all maps are 0, and for a run of an
            earlier version.
        alignment, uniformity: of the same maps (Wang and Isola, 2020); lower is better. None for a run of an
            earlier version.
        cknna: alignment of nearest neighbours (CKNNA, Huh et al., 2024) of the same maps with those of the
            first backbone, in [-1, 1]; it is 1 for the first. None for fewer than 4 images, for features that
            do not vary, and for a run of an earlier version.
        ece: expected calibration errors by key of the trial, in [0, 1], means over seeds; empty for a run of
            an earlier version.
    """

    name: str
    place: "Place"
    parameters: Natural
    relative_speed: NonNegative
    scores: Mapping[str, Score]
    differences: Mapping[str, tuple[float, float]]
    frechet: float | None = None
    log_snr: float | None = None
    effective_rank: float | None = None
    ece: Mapping[str, float] = field(default_factory=dict)
    alignment: float | None = None
    uniformity: float | None = None
    cknna: float | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        geometry = {name: getattr(self, name) for name in GEOMETRY}
        return {
            "backbone": self.name,
            "block": self.place[0],
            "noise_step": self.place[1],
            "log_snr": self.log_snr,
            "parameters": self.parameters,
            "relative_speed": round(self.relative_speed, 3),
            "frechet_distance": self.frechet,
            "accuracy": {key: score.value for key, score in self.scores.items()},
            "interval": {key: list(score.interval) for key, score in self.scores.items()},
            "difference_from_first": {key: list(pair) for key, pair in self.differences.items()},
            **{name: value for name, value in geometry.items() if value is not None},
            **({"ece": dict(self.ece)} if self.ece else {}),
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Read what `metrics` wrote; the relative speed is rounded to three digits."""
        interval = field_in(metrics, "interval", dict[str, tuple[float, float]])
        accuracy = field_in(metrics, "accuracy", dict[str, Share])
        if interval.keys() != accuracy.keys():
            raise FieldError("interval and accuracy are of different trials")
        return cls(
            name=field_in(metrics, "backbone", str),
            place=(field_in(metrics, "block", int), field_in(metrics, "noise_step", Level)),
            scores={key: Score(value, interval[key]) for key, value in accuracy.items()},
            differences=field_in(metrics, "difference_from_first", dict[str, tuple[float, float]]),
            frechet=field_in(metrics, "frechet_distance", float | None),
            ece=field_in({"ece": {}, **metrics}, "ece", dict[str, Share]),
            **fields_in(cls, metrics, "name", "place", "scores", "differences", "frechet", "ece"),
        )


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """The result of `compare`.

    Attributes:
        out: the run directory.
        backbones: scores of each backbone, in the order of the configuration.
        titles: titles of the trials, by key.
        metric: the accuracy that is compared, "top1" or "mean_per_class".
        test_images: number of test images.
        feature_space: the space of the Fréchet distances; None where nothing was generated.
        samples: number of images that each generating backbone generated.
    """

    out: Path
    backbones: tuple[BackboneScores, ...]
    titles: Mapping[str, str]
    metric: str
    test_images: Natural
    feature_space: str | None
    samples: Natural

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "metric": self.metric,
            "test_images": self.test_images,
            "feature_space": self.feature_space,
            "samples": self.samples,
            "backbones": [backbone.metrics() for backbone in self.backbones],
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], out: Path) -> Self:
        """Read what `metrics` wrote into the run directory `out`; a trial's title is its key."""
        records = field_in(metrics, "backbones", list[dict[str, Any]])
        backbones = tuple(map(BackboneScores.from_metrics, records))
        if not backbones:
            raise FieldError("backbones is empty")
        titles = {key: key for key in backbones[0].scores}
        figures = fields_in(cls, metrics, "out", "backbones", "titles")
        return cls(out=out, backbones=backbones, titles=titles, **figures)

    def summary(self) -> str:
        generated = any(backbone.frechet is not None for backbone in self.backbones)
        others = ("parameters", "speed", "rank", *(["Fréchet"] if generated else []))
        # a narrow terminal cuts no number: columns fold, and have no space around them
        columns = [Column(title, overflow="fold") for title in ("backbone", *self.titles.values(), *others)]
        table = Table(*columns, title="accuracy, %", padding=0)
        for backbone in self.backbones:
            table.add_row(
                backbone.name,
                *(f"{100 * score.value:.2f}" for score in backbone.scores.values()),
                f"{backbone.parameters / 1e6:,.1f} M",
                f"{backbone.relative_speed:.2f}",
                "" if backbone.effective_rank is None else f"{backbone.effective_rank:.1f}",
                *(["" if backbone.frechet is None else f"{backbone.frechet:.4g}"] if generated else []),
            )
        return f"{table_text(table)}\nReport: {self.out / 'report.html'}, plot: {self.out / 'compare.png'}"
