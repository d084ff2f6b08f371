"""Metrics by class, from predictions."""

import math
from dataclasses import replace

import pytest
import torch

from difflens.metrics.calibration import expected_calibration_error
from difflens.metrics.classification import Evaluation
from difflens.metrics.statistics import wilson


def evaluation(labels: list[int], predictions: list[int], classes: tuple[str, ...]) -> Evaluation:
    ranked = torch.tensor(predictions)[:, None]
    return Evaluation(
        torch.arange(len(labels)), torch.tensor(labels), ranked, torch.ones(len(labels)), classes
    )


def test_predictions_of_a_file_have_no_top5() -> None:
    known = Evaluation.of(torch.arange(4), torch.arange(4), torch.eye(4), ("a", "b", "c", "d"))
    assert known.top5 == 1
    assert replace(known, ranked=known.ranked[:, :1]).top5 is None


@pytest.mark.parametrize("bins", [10, 15])
def test_expected_calibration_error_is_that_of_a_direct_computation(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator)
    confidence[:4] = torch.tensor([0.0, 1.0, 1 / bins, 2 / bins])  # the ends of bins
    correct = torch.rand(500, generator=generator) < confidence**2
    expected = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        inside |= (confidence == 0) & (m == 1)
        if inside.any():
            gap = correct[inside].double().mean() - confidence[inside].double().mean()
            expected += float(gap.abs() * inside.sum() / 500)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-6)


def test_calibrated_and_overconfident_predictions() -> None:
    right = torch.tensor([True, True, True, False])
    assert expected_calibration_error(torch.full((4,), 0.75), right) == pytest.approx(0)
    assert expected_calibration_error(torch.ones(4), right) == pytest.approx(0.25)


def test_negative_log_likelihood() -> None:
    labels = torch.tensor([0, 1])
    likelihood = torch.tensor([0.5, 0.125]).log()
    known = Evaluation(
        torch.arange(2), labels, labels[:, None], torch.tensor([0.5, 0.5]), ("a", "b"), likelihood
    )
    assert known.nll == pytest.approx(2 * math.log(2))
    assert known.metrics()["nll"] == known.nll
    read = replace(known, log_likelihood=None)
    assert read.nll is None
    assert "nll" not in read.metrics()


def test_classes_are_ranked_where_their_probabilities_are_0() -> None:
    logits = torch.tensor([[300.0, 0, 1, 2, 3, 4, 5, 6, 150, 160]])
    found = Evaluation.of(torch.arange(1), torch.tensor([9]), logits, tuple("abcdefghij"))
    assert found.ranked.tolist() == [[0, 9, 8, 7, 6]]
    assert (found.top5, found.confidence.tolist()) == (1.0, [1.0])


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
