"""Classification metrics from predictions, with the uncertainty of a finite test set."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from difflens.metrics.calibration import expected_calibration_error
from difflens.metrics.confusion import confusion_matrix
from difflens.metrics.multi_label import MultiLabelEvaluation
from difflens.metrics.statistics import Z95, wilson

MOST_MATRIX_CLASSES = 1000
"""The most classes of a confusion matrix in metrics and reports: its cells grow with their square."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions on a test split.

    Attributes:
        rows: (N,) long, positions of the images in the split, each once, without skipped images.
        labels: (N,) long, the true classes.
        ranked: (N, K) long, the five (or fewer) most probable classes, the best first.
        confidence: (N,) in [0, 1], probability of the best class.
        classes: names of the classes.
        log_likelihood: (N,) up to 0, the natural logarithm of the probability of the true class; None where
            it is not known, because the predictions were read from a file.
    """

    rows: Tensor
    labels: Tensor
    ranked: Tensor
    confidence: Tensor
    classes: tuple[str, ...]
    log_likelihood: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, logits: Tensor, classes: tuple[str, ...]) -> "Evaluation":
        """Return the predictions of logits, (N, K), on the CPU."""
        logits = logits.float()
        # ranked by logits: of small probabilities, many are 0
        ranked = logits.topk(min(5, len(classes))).indices
        confidence = logits.softmax(1).gather(1, ranked[:, :1])[:, 0]
        likelihood = logits.log_softmax(1).gather(1, labels.to(logits.device)[:, None])[:, 0]
        return cls(
            rows.cpu(),
            labels.cpu(),
            ranked.cpu(),
            confidence.cpu(),
            classes,
            likelihood.cpu(),
        )

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the most probable class is the true one."""
        return self.ranked[:, 0] == self.labels

    @property
    def top1(self) -> float:
        """The share of images whose most probable class is the true one, in [0, 1]."""
        return float(self.correct.double().mean())

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of `top1`."""
        return wilson(int(self.correct.sum()), len(self.correct))

    @property
    def top5(self) -> float | None:
        """The share of images whose true class is among the five most probable, in [0, 1].

        None where only the most probable class is known, because the predictions were read from a file.
        """
        if self.ranked.shape[1] < min(5, len(self.classes)):
            return None
        return float((self.ranked == self.labels[:, None]).any(1).double().mean())

    @property
    def ece(self) -> float:
        """The expected calibration error of `confidence`, in [0, 1] (15 bins; Guo et al., 2017)."""
        return expected_calibration_error(self.confidence, self.correct)

    @property
    def nll(self) -> float | None:
        """The mean negative log-likelihood of the true class, in nats; None where it is not known."""
        return None if self.log_likelihood is None else float(-self.log_likelihood.double().mean())

    @property
    def confusion(self) -> Tensor:
        """(K, K) long: number of images by true class (rows) and predicted class (columns)."""
        return confusion_matrix(self.ranked[:, 0], self.labels, len(self.classes))

    @property
    def totals(self) -> list[int]:
        """The number of test images of each class."""
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counts

    @property
    def hits(self) -> list[int]:
        """The number of test images of each class that are classified correctly."""
        counts: list[int] = torch.bincount(self.labels[self.correct], minlength=len(self.classes)).tolist()
        return counts

    @property
    def per_class(self) -> dict[str, float | None]:
        """The accuracy of each class, in [0, 1]; None for a class without test images."""
        return {
            name: hit / total if total else None
            for name, hit, total in zip(self.classes, self.hits, self.totals, strict=True)
        }

    @property
    def per_class_intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of `per_class`; classes without test images are left out."""
        return {
            name: wilson(hit, total)
            for name, hit, total in zip(self.classes, self.hits, self.totals, strict=True)
            if total
        }

    def most_confused(self, count: int = 6) -> list[tuple[int, int, int]]:
        """Return the most frequent mistakes as (true class, predicted class, images), at most `count`."""
        pairs = torch.stack([self.labels, self.ranked[:, 0]], dim=1)[~self.correct]
        mistakes, images = pairs.unique(dim=0, return_counts=True)
        order = images.argsort(descending=True, stable=True)[:count]
        return [
            (true, predicted, number)
            for (true, predicted), number in zip(
                mistakes[order].tolist(), images[order].tolist(), strict=True
            )
        ]

    @property
    def mean_per_class(self) -> float:
        """The mean accuracy of the classes that have test images, in [0, 1]."""
        accuracies = [value for value in self.per_class.values() if value is not None]
        return sum(accuracies) / len(accuracies)

    def metrics(self) -> dict[str, object]:
        """Return accuracies and counts as plain values, for metrics.json.

        The confusion matrix is left out beyond `MOST_MATRIX_CLASSES`.
        """
        few = len(self.classes) <= MOST_MATRIX_CLASSES
        return {
            "top1": self.top1,
            "top1_interval_95": list(self.top1_interval),
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "test_images": len(self.rows),
            "per_class": self.per_class,
            **({"confusion_matrix": self.confusion.tolist()} if few else {}),
            "ece": self.ece,
            **({} if self.nll is None else {"nll": self.nll}),
        }


E = TypeVar("E", Evaluation, MultiLabelEvaluation)


def joined(parts: Sequence[E]) -> E:
    """Return the predictions of several parts of a split, at least one, in the order of the images."""
    first = parts[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    names = [each.name for each in fields(first) if isinstance(getattr(first, each.name), Tensor)]
    columns: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])[order] for name in names
    }
    return replace(first, **columns)


def paired_difference(a: Evaluation, b: Evaluation) -> tuple[float, float]:
    """Return top-1 of `a` minus top-1 of `b` on the same images, and the half-width of its 95 % interval.

    The images are paired: only images on which one is right and the other wrong add to the uncertainty. One
    image says nothing about it: the interval then holds every difference.
    """
    difference = a.correct.double() - b.correct.double()
    if len(difference) < 2:
        return float(difference.mean()), 2.0
    return float(difference.mean()), float(Z95 * difference.std() / len(difference) ** 0.5)
