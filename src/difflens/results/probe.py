"""The result of `difflens probe`: one shape for one seed and for several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from difflens.configs.command_line import beside, next_commands, shown_command
from difflens.configs.explain import ExplainConfig
from difflens.configs.predict import PredictConfig
from difflens.errors import counted, listing
from difflens.ranges import Count, Natural, NonNegative, Share
from difflens.results.base import Result, plain, skipped
from difflens.run.reading import FieldError, checked

if TYPE_CHECKING:
    from difflens.models.saved import TrainedModel

Accuracy = Literal["top1", "top5", "mean_per_class", "map"]
"""Name of a figure in [0, 1] that has a mean over seeds."""

_EXPLAINED = ("linear", "attention", "difformer", "mix")  # the heads that `explain` shows
_TITLES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "map": "mAP"}
# figures that metrics.json leaves out where there are none
_OPTIONAL = ("grid", "neighbours", "ece", "nll", "confusion_matrix")
# figures that are the same for all seeds, in the order of metrics.json
_COMMON = ("metric", "test_images", "train_images", "trainable_parameters")


@dataclass(frozen=True)
class GridTrial:
    """One learning rate and weight decay of the grid.

    Attributes:
        validation_top1: accuracy on held-out training images, in [0, 1].
        chosen: true for the pair that the head was trained with.
    """

    learning_rate: NonNegative
    weight_decay: NonNegative
    validation_top1: Share
    chosen: bool = False


@dataclass(frozen=True)
class NeighbourTrial:
    """One number of neighbours that k-NN tried.

    Attributes:
        k: number of neighbours that vote.
        validation_top1: accuracy on the training images, each left out in turn, in [0, 1].
        chosen: true for the k that the head uses.
        top1: accuracy on the test images, which the choice ignores; None before the test images are read.
    """

    k: Count
    validation_top1: Share
    chosen: bool = False
    top1: Share | None = None


class SeedFigures:
    """The figures of one seed, which metrics.json holds in the order of the fields of a subclass.

    Attributes:
        SHARES: the names of the figures that have a mean over seeds, the most important first.
        test_images: number of test images that were read.
        trainable_parameters: number of parameters that were trained.
        train_images: number of training images that were read, without skipped images.
        train_seconds: seconds of training, without reading features.
        skipped_images: a line for each image that could not be read.
    """

    SHARES: ClassVar[tuple[Accuracy, ...]]

    test_images: Count
    trainable_parameters: Natural
    train_images: Natural
    train_seconds: NonNegative
    epochs: Natural
    seed: Natural
    skipped_images: tuple[str, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the first of `SHARES`."""
        low, high = getattr(self, f"{self.SHARES[0]}_interval_95")
        return low, high

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        values: dict[str, Any] = plain(self)
        return {key: value for key, value in values.items() if value is not None or key not in _OPTIONAL}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Self:
        """Read what `metrics` wrote."""
        return checked(cls, metrics)


@dataclass(frozen=True, kw_only=True)
class MultiLabelSeedResult(SeedFigures):
    """The figures of one seed on images with several labels.

    Attributes:
        map: mean average precision on the test split, in [0, 1].
        map_interval_95: 95 % interval of `map`.
        per_class: average precision by class, in [0, 1]; None for a class that no test image has, which the
            mean leaves out.
        positives: number of test images by class.
        metric: "map".
        ece: expected calibration error over all pairs of test image and class, in [0, 1] (15 bins); None for
            a run of a version that did not measure it.
        nll: mean negative log-likelihood of a class being in a test image or not, in nats; None as for `ece`.
    """

    SHARES = ("map",)

    map: Share
    map_interval_95: tuple[Share, Share]
    test_images: Count
    per_class: Mapping[str, Share | None]
    positives: Mapping[str, Natural]
    metric: Literal["map"]
    trainable_parameters: Natural
    train_images: Natural
    train_seconds: NonNegative
    epochs: Natural
    seed: Natural
    skipped_images: tuple[str, ...]
    ece: Share | None = None
    nll: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class SeedResult(SeedFigures):
    """The figures of one seed on images with one label.

    Attributes:
        top1, top5, mean_per_class: accuracies on the test split, in [0, 1].
        top1_interval_95: 95 % interval of `top1`.
        per_class: accuracy by class, in [0, 1]; None for a class without test images.
        confusion_matrix: numbers of test images; rows are true classes, columns are predictions. None for
            more than 1,000 classes; predictions.csv holds every prediction.
        metric: "top1" or "mean_per_class", the accuracy that papers report on this data set.
        grid, neighbours: settings that were tried on training images; None where the head has no such choice.
        ece: expected calibration error on the test split, in [0, 1] (15 bins; Guo et al., 2017); None for a
            run of a version that did not measure it.
        nll: mean negative log-likelihood of the true class, in nats; None as for `ece`.
    """

    SHARES = ("top1", "top5", "mean_per_class")

    top1: Share
    top1_interval_95: tuple[Share, Share]
    top5: Share
    mean_per_class: Share
    test_images: Count
    per_class: Mapping[str, Share | None]
    confusion_matrix: tuple[tuple[Natural, ...], ...] | None = None
    metric: Literal["top1", "mean_per_class"]
    trainable_parameters: Natural
    train_images: Natural
    train_seconds: NonNegative
    epochs: Natural
    seed: Natural
    skipped_images: tuple[str, ...]
    grid: tuple[GridTrial, ...] | None = None
    neighbours: tuple[NeighbourTrial, ...] | None = None
    ece: Share | None = None
    nll: NonNegative | None = None


def read_seeds(metrics: Mapping[str, Any]) -> tuple[SeedResult, ...]:
    """Return the figures of every seed, from the metrics.json of one seed or of several."""
    if "runs" not in metrics:
        return (SeedResult.from_metrics(metrics),)
    seeds = checked(tuple[SeedResult, ...], metrics["runs"], "runs")
    if not seeds:
        raise FieldError("runs is empty: it must hold the figures of at least one seed")
    return seeds


def mean_of(seeds: Sequence[SeedFigures], share: Accuracy) -> float:
    """Return the mean over seeds, in [0, 1]."""
    return mean(getattr(seed, share) for seed in seeds)


def deviation_of(seeds: Sequence[SeedFigures], share: Accuracy) -> float | None:
    """Return the standard deviation between seeds, in [0, 1]; None for one seed."""
    return stdev(getattr(seed, share) for seed in seeds) if len(seeds) > 1 else None


def _mean_measured(seeds: Sequence[SeedFigures], name: str) -> float | None:
    """Return the mean of a figure that all seeds have; None if a seed has none."""
    values = [getattr(seed, name, None) for seed in seeds]
    measured = [value for value in values if value is not None]
    return mean(measured) if len(measured) == len(values) else None


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
    """The result of `probe`.

    Attributes:
        out: the run directory.
        model: the trained model of the first seed.
        seeds: the figures of each seed, at least one: `SeedResult`, or `MultiLabelSeedResult` of images with
            several labels, which have `map` in place of the accuracies.
        evaluations: the predictions on the test split of each seed: `Evaluation`, or `MultiLabelEvaluation`.
    """

    out: Path
    model: "TrainedModel"
    seeds: tuple[SeedFigures, ...]
    evaluations: tuple[Any, ...]

    @property
    def map(self) -> float:
        """Mean average precision in [0, 1], of images with several labels; the mean over seeds."""
        return mean_of(self.seeds, "map")

    @property
    def map_std(self) -> float | None:
        """Standard deviation of `map` between seeds; None for one seed."""
        return deviation_of(self.seeds, "map")

    @property
    def top1(self) -> float:
        """Top-1 accuracy in [0, 1]; the mean over seeds."""
        return mean_of(self.seeds, "top1")

    @property
    def top5(self) -> float:
        """Top-5 accuracy in [0, 1]; the mean over seeds."""
        return mean_of(self.seeds, "top5")

    @property
    def mean_per_class(self) -> float:
        """Mean of the classes' accuracies, in [0, 1]; the mean over seeds."""
        return mean_of(self.seeds, "mean_per_class")

    @property
    def ece(self) -> float | None:
        """Expected calibration error in [0, 1], the mean over seeds; None where it was not measured."""
        return _mean_measured(self.seeds, "ece")

    @property
    def nll(self) -> float | None:
        """Negative log-likelihood in nats, the mean over seeds; None where it was not measured."""
        return _mean_measured(self.seeds, "nll")

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
        return tuple(sorted({line for seed in self.seeds for line in seed.skipped_images}))

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json: the figures of one seed, or the summary of several and "runs"."""
        runs = [seed.metrics() for seed in self.seeds]
        if len(runs) == 1:
            return runs[0]
        shares = self.seeds[0].SHARES
        return {
            **{share: mean_of(self.seeds, share) for share in shares},
            **{f"{share}_std": deviation_of(self.seeds, share) for share in shares},
            **({} if self.ece is None else {"ece": self.ece}),
            **({} if self.nll is None else {"nll": self.nll}),
            **{key: runs[0][key] for key in _COMMON},
            "runs": runs,
        }

    def summary(self) -> str:
        first = self.seeds[0]
        figures = {share: f"{100 * mean_of(self.seeds, share):.2f}" for share in first.SHARES}
        if len(self.seeds) > 1:
            figures = {
                share: f"{value} ± {100 * (deviation_of(self.seeds, share) or 0):.2f} %"
                for share, value in figures.items()
            }
            seeds = counted(len(self.seeds), "seed")
            figures[first.SHARES[0]] += f" (mean and standard deviation over {seeds})"
        else:
            low, high = first.interval
            figures = {share: f"{value} %" for share, value in figures.items()}
            figures[first.SHARES[0]] += f" (95 % interval {100 * low:.2f} to {100 * high:.2f})"
        if isinstance(first, MultiLabelSeedResult):
            absent = [name for name, value in first.per_class.items() if value is None]
            figures["map"] += f", without {listing(absent)}, which no test image has" * bool(absent)
        if isinstance(first, SeedResult) and first.metric == "mean_per_class":
            figures["mean_per_class"] += " (the metric that papers report on this data set)"
        calibration = "" if self.ece is None else f", ECE {100 * self.ece:.2f} %"
        calibration += "" if self.nll is None else f", NLL {self.nll:.3f}"
        said = ", ".join(f"{_TITLES[share]} {value}" for share, value in figures.items())
        return (
            f"{said}{calibration}, "
            f"{first.train_images:,} training and {counted(first.test_images, 'test image')}, "
            f"{counted(first.trainable_parameters, 'trainable parameter')}\n"
            f"Report: {self.out / 'report.html'}\nModel: {self.out / 'model'}\n"
            + "\n".join(next_commands(self.commands))
        )

    @property
    def commands(self) -> tuple[str, ...]:
        """Command lines to run next."""
        model = self.out / "model"
        commands = [shown_command(PredictConfig(model=model, images=(Path("IMAGES"),)))]
        if self.model.head.name in _EXPLAINED and isinstance(self.seeds[0], SeedResult):
            explain = ExplainConfig(run=self.out, out=self.out)
            commands.append(shown_command(explain, beside(self.out, "explained")))
        return tuple(commands)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
