"""Metrics by class, from predictions."""

import torch

from difflens.metrics.classification import Evaluation
from difflens.metrics.statistics import wilson


def evaluation(labels: list[int], predictions: list[int], classes: tuple[str, ...]) -> Evaluation:
    ranked = torch.tensor(predictions)[:, None]
    return Evaluation(
        torch.arange(len(labels)), torch.tensor(labels), ranked, torch.ones(len(labels)), classes
    )


def test_most_confused() -> None:
    result = evaluation([0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 0, 1, 0, 0, 0], ("a", "b", "c"))
    assert result.most_confused() == [(2, 0, 3), (0, 1, 2), (1, 0, 1)]
    assert result.most_confused(1) == [(2, 0, 3)]
    assert result.most_confused(0) == []


def test_most_confused_breaks_ties_by_class() -> None:
    result = evaluation([2, 1, 0, 0], [0, 2, 2, 1], ("a", "b", "c"))
    assert result.most_confused() == [(0, 1, 1), (0, 2, 1), (1, 2, 1), (2, 0, 1)]


def test_nothing_confused() -> None:
    assert evaluation([0, 1], [0, 1], ("a", "b")).most_confused() == []
    assert evaluation([0, 0], [0, 0], ("only",)).most_confused() == []


def test_per_class_intervals() -> None:
    result = evaluation([0, 0, 0, 2], [0, 0, 1, 2], ("a", "empty", "c"))
    assert result.per_class == {"a": 2 / 3, "empty": None, "c": 1.0}
    assert result.per_class_intervals == {"a": wilson(2, 3), "c": wilson(1, 1)}
