"""The suggested place, on made-up statistics."""

import pytest
import torch

from difflens.metrics.suggestion import combined_score, suggest_place


def test_the_score_is_the_mean_rank_in_each_statistics_direction() -> None:
    statistics = {
        "a": torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 6.0]]),
        "b": torch.tensor([[10.0, 0.0, 20.0], [20.0, torch.nan, 40.0]]),
        "ignored": torch.full((2, 3), torch.nan),
    }
    score = combined_score(statistics, {"a": 1, "b": -1})
    ranks = torch.tensor([[0.0, 4.0, 2.0], [1.0, 3.0, 5.0]]) / 5
    low = torch.tensor([[3.0, 4.0, 1.5], [1.5, 2.0, 0.0]]) / 4  # NaN in the middle, equals share a rank
    assert torch.allclose(score, ((ranks + low) / 2).double())
    stretched = {**statistics, "a": statistics["a"].exp()}
    assert torch.equal(combined_score(stretched, {"a": 1, "b": -1}), score)
    one = combined_score({"a": torch.tensor([[3.0]])}, {"a": 1})
    assert one.tolist() == [[0.5]]


def test_the_best_place_is_suggested_with_what_halves_suggest() -> None:
    score = torch.tensor([[0.1, 0.8, 0.2], [0.8, 0.3, 0.8]])
    halves = [score, score.flip(0), torch.eye(2, 3), torch.eye(2, 3)]
    best = suggest_place(score, halves, (2, 5, 9), (0.1, 0.7))
    assert (best.block, best.noise_step, best.score) == (2, 0.7, pytest.approx(0.8))
    assert best.halves == 4
    assert best.agreeing == 1
    assert sorted(best.places) == [(2, 0.1, 3), (2, 0.7, 1)]
    assert best.places[0] == (2, 0.1, 3)
