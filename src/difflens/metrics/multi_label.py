"""Metrics of images with several labels: average precision, with the uncertainty of a finite test set."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from difflens.errors import DiffLensError
from difflens.metrics.calibration import expected_calibration_error
from difflens.metrics.statistics import Z95

RESAMPLES = 1000
"""Number of resamples of the bootstrap (Efron, 1979)."""

THRESHOLD = 0.5
"""The least probability of a class that an image is said to have."""

_AT_ONCE = 2**24  # numbers of the resamples that are computed together


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Predictions on a test split whose images have several labels, or none of the classes.

    Attributes:
        rows: (N,) long, positions of the images in the split, each once, without skipped images.
        labels: (N, K) bool, the classes that are in the images.
        probabilities: (N, K) float64 in [0, 1]: as float32, those of confident predictions would be equal.
        classes: names of the classes.
    """

    rows: Tensor
    labels: Tensor
    probabilities: Tensor
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, rows: Tensor, labels: Tensor, logits: Tensor, classes: tuple[str, ...]
    ) -> "MultiLabelEvaluation":
        """Return the predictions of logits, (N, K), on the CPU; labels may also be numbers, 0 or 1.

        Raises:
            DiffLensError: a label is another number.
        """
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise DiffLensError("labels of several classes an image must be 0 or 1")
        return cls(rows.cpu(), labels.bool().cpu(), logits.double().sigmoid().cpu(), classes)

    @property
    def positives(self) -> dict[str, int]:
        """The number of images of each class."""
        return dict(zip(self.classes, self.labels.sum(0).tolist(), strict=True))

    @cached_property
    def per_class(self) -> dict[str, float | None]:
        """The average precision of each class, in [0, 1]; None for a class that no image has."""
        values = average_precision(self.probabilities, self.labels)[0].tolist()
        return {
            name: value if count else None
            for (name, count), value in zip(self.positives.items(), values, strict=True)
        }

    @property
    def map(self) -> float:
        """The mean average precision, in [0, 1], over the classes that an image has.

        Raises:
            DiffLensError: no image has any of the classes.
        """
        known = [value for value in self.per_class.values() if value is not None]
        if not known:
            raise DiffLensError("no test image that could be read has a label: there is no average precision")
        return sum(known) / len(known)

    @property
    def map_interval(self) -> tuple[float, float]:
        """The 95 % interval of `map`, by its deviation in a bootstrap over images."""
        return _interval(self.map, self._resampled.nanmean(1))

    @property
    def per_class_intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of `per_class`; classes that no image has are left out."""
        return {
            name: _interval(value, self._resampled[:, k])
            for k, (name, value) in enumerate(self.per_class.items())
            if value is not None
        }

    @property
    def ece(self) -> float:
        """The expected calibration error of the probabilities, in [0, 1], over all pairs of image and class.

        The share of the pairs in which the image has the class is compared with their mean probability, in 15
        bins of probability (Guo et al., 2017).
        """
        return expected_calibration_error(self.probabilities.flatten(), self.labels.flatten())

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of a class being in an image or not, in nats.

        The mean is over all pairs of image and class. A pair counts at most 100, as much as a probability of
        exactly 0 or 1 that is wrong.
        """
        return float(binary_cross_entropy(self.probabilities.double(), self.labels.double()))

    def misranked(self, count: int = 3) -> list[tuple[str, bool, list[int]]]:
        """Return the images that are ranked wrongly, of the `count` classes of the least average precision.

        Returns:
            A class; False for images without it that stand before one with it, True for images with it that
            stand behind one without it; and their positions in the split, the surest mistake first.
        """
        known = {name: value for name, value in self.per_class.items() if value is not None and value < 1}
        mistakes = []
        for name in sorted(known, key=lambda name: known[name])[:count]:
            k = self.classes.index(name)
            scores, there = self.probabilities[:, k], self.labels[:, k]
            high = (~there & (scores >= scores[there].min())).nonzero()[:, 0]
            low = (there & (scores <= scores[~there].max())).nonzero()[:, 0]
            high = high[scores[high].argsort(descending=True, stable=True)]
            low = low[scores[low].argsort(stable=True)]
            mistakes += [(name, False, self.rows[high].tolist()), (name, True, self.rows[low].tolist())]
        return mistakes

    def metrics(self) -> dict[str, object]:
        """Return average precisions and counts as plain values, for metrics.json."""
        return {
            "map": self.map,
            "map_interval_95": list(self.map_interval),
            "test_images": len(self.rows),
            "per_class": self.per_class,
            "positives": self.positives,
            "metric": "map",
            "ece": self.ece,
            "nll": self.nll,
        }

    @cached_property
    def _resampled(self) -> Tensor:
        """(RESAMPLES, K) average precisions of the images drawn with replacement; NaN without positives."""
        count, generator = len(self.rows), torch.Generator().manual_seed(0)
        parts = []
        for part in torch.arange(RESAMPLES).split(max(1, _AT_ONCE // count)):
            drawn = torch.randint(count, (count, len(part)), generator=generator)
            times = torch.zeros(drawn.shape).scatter_add_(0, drawn, torch.ones(drawn.shape))
            parts.append(average_precision(self.probabilities, self.labels, times))
        return torch.cat(parts)


def average_precision(scores: Tensor, labels: Tensor, times: Tensor | None = None) -> Tensor:
    """Return average precisions, (R, K) float64 in [0, 1]: the precision at each positive, averaged.

    It is the sum over thresholds of precision times the increase of recall, without interpolation, as in
    scikit-learn. Images of equal score share a threshold. A class without positives gives NaN.

    Args:
        scores: (N, K), higher for images that rather have the class.
        labels: (N, K) bool.
        times: (N, R) float32, how often each image counts in R samples of the images; None: once, and R is 1.
    """
    times = torch.ones(len(scores), 1) if times is None else times
    columns = []
    for values, true in zip(scores.T, labels.T, strict=True):
        thresholds, order = values[true].sort(descending=True)
        weights = times[true][order]
        # the first threshold that an image reaches: with each it counts there and at all lower ones
        reached = torch.searchsorted(-thresholds, -values)
        above, found = times.new_zeros(2, len(thresholds) + 1, times.shape[1])
        above = above.index_add_(0, reached, times)[:-1].cumsum(0)
        found = found.index_add_(0, reached[true][order], weights)[:-1].cumsum(0)
        precision = found / above.clamp(min=1)
        columns.append(
            (weights * precision).sum(0, dtype=torch.float64) / weights.sum(0, dtype=torch.float64)
        )
    return torch.stack(columns, 1)


def _interval(value: float, resampled: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of a share by the deviation of its resamples.

    Images that are drawn twice rank together, which raises the resamples: their percentiles may lie above it.
    """
    half = Z95 * float(resampled[~resampled.isnan()].std())
    return max(0.0, value - half), min(1.0, value + half)
