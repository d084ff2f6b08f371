"""The result of `difflens probe`: one shape for one seed and for several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, Self

from difflens.metrics.classification import Evaluation
from difflens.results.base import Result, known, plain, skipped

if TYPE_CHECKING:
    from difflens.models.saved import TrainedModel

Share = Literal["top1", "top5", "mean_per_class"]
"""A figure that is summarised over seeds, in [0, 1]."""

_SHARES: tuple[Share, ...] = ("top1", "top5", "mean_per_class")
# what is the same for all seeds, as metrics.json of several seeds orders it
_COMMON = ("metric", "test_images", "train_images", "trainable_parameters")


@dataclass(frozen=True)
class GridTrial:
    """One learning rate and weight decay that the grid tried, and its accuracy on held-out training images."""

    learning_rate: float
    weight_decay: float
    validation_top1: float
    chosen: bool = False


@dataclass(frozen=True)
class NeighbourTrial:
    """One number of neighbours that k-NN tried.

    Attributes:
        k: how many neighbours vote.
        validation_top1: accuracy on the training images, each left out in turn.
        chosen: true for the k that the head uses.
        top1: accuracy on the test images, which has no part in the choice; None before they are read.
    """

    k: int
    validation_top1: float
    chosen: bool = False
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The figures of one seed, which metrics.json holds.

    Attributes:
        top1, top5, mean_per_class: accuracies on the test split, in [0, 1].
        top1_interval_95: 95 % interval of `top1`.
        per_class: accuracy by class; None for a class without test images.
        confusion_matrix: test images, rows are true classes.
        metric: "top1" or "mean_per_class", the figure that is usual on this data set.
        train_images: images that were read; those that were skipped do not count.
        train_seconds: seconds of training, without reading features.
        skipped_images: a line for each image that could not be read.
        grid, neighbours: what was tried on training images; None where the head has no such choice.
    """

    top1: float
    top1_interval_95: tuple[float, float]
    top5: float
    mean_per_class: float
    test_images: int
    per_class: Mapping[str, float | None]
    confusion_matrix: tuple[tuple[int, ...], ...]
    metric: str
    trainable_parameters: int
    train_images: int
    train_seconds: float
    epochs: int
    seed: int
    skipped_images: tuple[str, ...]
    grid: tuple[GridTrial, ...] | None = None
    neighbours: tuple[NeighbourTrial, ...] | None = None

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        values: dict[str, Any] = plain(self)
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in ("grid", "neighbours")
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """What `metrics` wrote."""
        grid, neighbours = metrics.get("grid"), metrics.get("neighbours")
        chosen = {
            "grid": grid and tuple(GridTrial(**known(GridTrial, each)) for each in grid),
            "neighbours": neighbours
            and tuple(NeighbourTrial(**known(NeighbourTrial, each)) for each in neighbours),
        }
        return cls(**{**known(cls, metrics), **chosen})


def read_seeds(metrics: Mapping[str, Any]) -> tuple[SeedResult, ...]:
    """The figures of every seed in metrics.json of one seed or of several."""
    return tuple(SeedResult.from_metrics(each) for each in metrics.get("runs", [metrics]))


def mean_of(seeds: Sequence[SeedResult], share: Share) -> float:
    """The mean over seeds, in [0, 1]."""
    return mean(getattr(each, share) for each in seeds)


def deviation_of(seeds: Sequence[SeedResult], share: Share) -> float | None:
    """The standard deviation between seeds, in [0, 1]; None for one seed."""
    return stdev(getattr(each, share) for each in seeds) if len(seeds) > 1 else None


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """What `probe` returns.

    Attributes:
        out: the run directory.
        model: the trained model; of several seeds that of the first.
        seeds: the figures of each seed, at least one.
        evaluations: the predictions on the test split, one a seed.
    """

    out: Path
    model: "TrainedModel"
    seeds: tuple[SeedResult, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def top1(self) -> float:
        """Top-1 accuracy in [0, 1], the mean over seeds."""
        return mean_of(self.seeds, "top1")

    @property
    def top5(self) -> float:
        """Share of test images whose class is among the five most probable, the mean over seeds."""
        return mean_of(self.seeds, "top5")

    @property
    def mean_per_class(self) -> float:
        """Mean of the classes' accuracies in [0, 1], the mean over seeds."""
        return mean_of(self.seeds, "mean_per_class")

    @property
    def top1_std(self) -> float | None:
        """Standard deviation of `top1` between seeds; None for one seed."""
        return deviation_of(self.seeds, "top1")

    @property
    def top5_std(self) -> float | None:
        """Standard deviation of `top5` between seeds; None for one seed."""
        return deviation_of(self.seeds, "top5")

    @property
    def mean_per_class_std(self) -> float | None:
        """Standard deviation of `mean_per_class` between seeds; None for one seed."""
        return deviation_of(self.seeds, "mean_per_class")

    @property
    def skipped_images(self) -> tuple[str, ...]:
        """A line for each image that a seed could not read."""
        if len(self.seeds) == 1:
            return self.seeds[0].skipped_images
        return tuple(sorted({line for each in self.seeds for line in each.skipped_images}))

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json: of one seed its figures, of several their summary and "runs"."""
        every = [each.metrics() for each in self.seeds]
        if len(every) == 1:
            return every[0]
        return {
            **{share: mean_of(self.seeds, share) for share in _SHARES},
            **{f"{share}_std": deviation_of(self.seeds, share) for share in _SHARES},
            **{key: every[0][key] for key in _COMMON},
            "runs": every,
        }

    def summary(self) -> str:
        first = self.seeds[0]
        if len(self.seeds) > 1:
            top1, top5, per_class = (
                f"{100 * mean_of(self.seeds, share):.2f} ± {100 * (deviation_of(self.seeds, share) or 0):.2f} %"
                for share in _SHARES
            )
            top1 += f" (mean and standard deviation over {len(self.seeds)} seeds)"
        else:
            low, high = first.top1_interval_95
            top1, top5, per_class = (f"{100 * getattr(first, share):.2f} %" for share in _SHARES)
            top1 += f" (95 % interval {100 * low:.2f} to {100 * high:.2f})"
        usual = ", which is what is reported on this data set" if first.metric == "mean_per_class" else ""
        return (
            f"top-1 {top1}, top-5 {top5}, mean per class {per_class}{usual}, {first.train_images:,} training and "
            f"{first.test_images:,} test images, {first.trainable_parameters:,} trainable parameters\n"
            f"Report: {self.out / 'report.html'}\nModel: {self.out / 'model'}"
        )

    def left_out(self) -> str:
        return skipped(self.skipped_images)
