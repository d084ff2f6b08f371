"""Where to read, on made-up scores."""

import pytest
import torch

from difflens.metrics.recommendation import recommend


def scores_of(right: torch.Tensor) -> torch.Tensor:
    """Scores (T, B, V, 2) of two classes for labels 0 where `right` (T, B, V) says so, else for the other
    class."""
    return torch.nn.functional.one_hot((~right).long(), 2).float()


def test_the_best_place_is_recommended_and_the_cheapest_of_equals_named() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([[0.5, 0.90, 0.7, 0.92], [0.5, 0.6, 0.7, 0.8]])
    right = torch.rand(2, 4, 400, generator=generator) < shares[..., None]
    best = recommend(scores_of(right), torch.zeros(400, dtype=torch.long), (2, 4, 6, 8), (10, 50))
    assert (best.block, best.noise_step) == (8, 10)
    assert best.cheaper == (4, 10)
    assert best.top1 == pytest.approx(float(right[0, 3].double().mean()))
    assert best.cross_validated <= best.top1


def test_fusion_takes_places_that_complement_each_other() -> None:
    """Block 1 knows the first half for sure, block 3 the second; block 2 is as good as either, but adds
    nothing."""
    count = 100
    labels = torch.arange(count) // 2 % 2
    sure = torch.nn.functional.one_hot(labels, 2).float()
    guess = torch.nn.functional.one_hot(torch.zeros(count, dtype=torch.long), 2).float() * 0.1
    first = (torch.arange(count) < 50)[:, None]
    one, three = torch.where(first, sure, guess), torch.where(first, guess, sure)
    best = recommend(torch.stack([one, one.clone(), three])[None], labels, (1, 2, 3), (7,))
    assert best.fusion_blocks == (1, 3)
    assert best.fusion_noise_steps == (7,)
    assert best.fusion_top1 == 1.0
    assert best.fusion_cross_validated == 1.0
    assert best.fusion_cross_validated_interval[0] < 1.0


def test_chance_is_not_recommended_as_skill() -> None:
    """The best of many places that guess looks better than chance, but not on images that did not choose
    it."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(300) % 2
    best = recommend(
        torch.rand(8, 20, 300, 2, generator=generator), labels, tuple(range(20)), tuple(range(8))
    )
    assert best.fusion_top1 > 0.55 > best.fusion_cross_validated
    assert best.fusion_cross_validated_interval[0] < 0.5 < best.fusion_cross_validated_interval[1]


def test_halves_hold_every_class_whatever_the_order_of_the_images() -> None:
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.rand(3, 4, 60, 2, generator=generator), torch.arange(60) % 2
    by_class = labels.argsort(stable=True)
    in_turn = recommend(scores, labels, (1, 2, 3, 4), (5, 6, 7))
    assert in_turn == recommend(scores[:, :, by_class], labels[by_class], (1, 2, 3, 4), (5, 6, 7))


def test_one_place_alone_can_be_recommended() -> None:
    labels = torch.zeros(10, dtype=torch.long)
    best = recommend(scores_of(torch.ones(1, 1, 10, dtype=torch.bool)), labels, (5,), (0,))
    assert (best.block, best.noise_step, best.fusion_blocks, best.cheaper) == (5, 0, (5,), None)


def test_a_place_without_scores_is_not_recommended() -> None:
    """The best places have no scores; of the others, the best one and those beside it are recommended."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([[0.9, 0.6, 0.99], [0.99, 0.8, 0.7]])
    right = torch.rand(2, 3, 400, generator=generator) < shares[..., None]
    scores = scores_of(right)
    for t, b in ((0, 2), (1, 0)):
        scores[t, b] = torch.nan
    labels = torch.zeros(400, dtype=torch.long)
    best = recommend(scores, labels, (2, 4, 6), (10, 50))
    assert (best.block, best.noise_step, best.cheaper) == (2, 10, None)
    assert (best.fusion_blocks, best.fusion_noise_steps) == ((2, 4), (10,))
    wrong = recommend(
        scores_of(right).fill_(torch.nan).index_fill_(1, torch.tensor([1]), 0),
        labels + 1,
        (2, 4, 6),
        (10, 50),
    )
    assert (wrong.block, wrong.top1, wrong.cross_validated) == (4, 0, 0)
