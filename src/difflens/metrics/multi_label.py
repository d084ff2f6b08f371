"""Metrics of images with several labels: average precision, with the uncertainty of a finite test set."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from difflens.errors import DiffLensError

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
        probabilities: (N, K) in [0, 1].
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
        """Return the predictions of logits, (N, K), on the CPU."""
        return cls(rows.cpu(), labels.cpu(), logits.float().sigmoid().cpu(), classes)

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
        """The 95 % interval of `map`: percentiles of the bootstrap over images."""
        return _interval(self._resampled.nanmean(1))

    @property
    def per_class_intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of `per_class`; classes that no image has are left out."""
        return {
            name: _interval(self._resampled[:, k])
            for k, (name, count) in enumerate(self.positives.items())
            if count
        }

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
        }

    @cached_property
    def _resampled(self) -> Tensor:
        """(RESAMPLES, K) average precisions of the images drawn with replacement; NaN without positives."""
        count, generator = len(self.rows), torch.Generator().manual_seed(0)
        parts = []
        for part in torch.arange(RESAMPLES).split(max(1, _AT_ONCE // count)):
            drawn = torch.randint(count, (len(part), count), generator=generator)
            times = torch.zeros(len(part), count).scatter_add_(1, drawn, torch.ones(len(part), count))
            parts.append(average_precision(self.probabilities, self.labels, times))
        return torch.cat(parts)


def average_precision(scores: Tensor, labels: Tensor, times: Tensor | None = None) -> Tensor:
    """Return average precisions, (R, K) float64 in [0, 1]: the precision at each positive, averaged.

    It is the sum over thresholds of precision times the increase of recall, without interpolation, as in
    scikit-learn. Images of equal score share a threshold. A class without positives gives NaN.

    Args:
        scores: (N, K), higher for images that rather have the class.
        labels: (N, K) bool.
        times: (R, N), how often each image counts, in R samples of the images; None: once, and R is 1.
    """
    times = torch.ones(1, len(scores)) if times is None else times
    columns = []
    for values, true in zip(scores.T, labels.T, strict=True):
        values, order = values.sort(descending=True)
        weights, hits = times[:, order].double(), true[order]
        # the last image of the same score
        last = torch.searchsorted(-values, -values[hits], right=True) - 1
        positive = weights[:, hits]
        found = (weights * hits).cumsum(1)[:, last]
        precision = found / weights.cumsum(1)[:, last].clamp(min=1)
        columns.append((positive * precision).sum(1) / positive.sum(1))
    return torch.stack(columns, 1)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = values.nanquantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
