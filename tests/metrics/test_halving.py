"""Successive halving on made-up tables of scores."""

from itertools import pairwise

import pytest
import torch

from difflens.metrics.halving import Rung, better_half, successive_halving


def test_the_better_half_is_kept_and_earlier_blocks_win_ties() -> None:
    accuracy = torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.8, 0.2, 0.5, 0.7]])
    everywhere = torch.ones(2, 4, dtype=torch.bool)
    kept = better_half(accuracy, everywhere)
    assert kept.tolist() == [[False, True, True, False], [True, False, False, True]]
    assert better_half(accuracy, kept).equal(kept)  # four places are left
    nine = better_half(torch.arange(9.0).reshape(3, 3), torch.ones(3, 3, dtype=torch.bool))
    assert nine.flatten().tolist() == [False] * 4 + [True] * 5
    assert better_half(torch.full((1, 2), torch.nan), torch.ones(1, 2, dtype=torch.bool)).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_best_place_of_a_table_is_kept_under_the_noise_of_few_images(seed: int) -> None:
    """Each image is classified correctly by chance; the best place is 10 points above the others."""
    generator = torch.Generator().manual_seed(seed)
    share = 0.5 + 0.2 * torch.rand(6, 20, generator=generator)
    share[4, 13] = 0.8
    correct = torch.rand(6, 20, 4096, generator=generator) < share[..., None]
    measured: list[Rung] = []

    def measure(rung: Rung) -> torch.Tensor:
        measured.append(rung)
        hits = correct[..., rung.before : rung.images].double().mean(-1)
        return hits.masked_fill(~rung.places, torch.nan)

    rungs = successive_halving(measure, torch.ones(6, 20, dtype=torch.bool), 128, 6 * 1024, 4096)
    assert rungs == measured
    assert all(rung.places[4, 13] for rung in rungs)
    assert [int(rung.places.sum()) for rung in rungs][:4] == [120, 60, 30, 15]
    assert [rung.images for rung in rungs][:4] == [128, 256, 512, 1024]
    assert all(after.before == rung.images for rung, after in pairwise(rungs))
    assert sum(rung.passes for rung in rungs) <= 6 * 1024
    last = correct[..., rungs[-1].before : rungs[-1].images].double().mean(-1)
    assert int(last.masked_fill(~rungs[-1].places, 0).argmax()) == 4 * 20 + 13


def test_what_is_saved_on_noise_levels_buys_images() -> None:
    """All good places stand at one of two noise levels; after one rung it is the only one that is read."""
    accuracy = torch.tensor([[0.9] * 8, [0.1] * 8])
    rungs = successive_halving(lambda _: accuracy, torch.ones(2, 8, dtype=torch.bool), 10, 2 * 80, 1000)
    assert [(rung.levels, rung.images) for rung in rungs] == [(2, 10), (1, 20), (1, 40), (1, 80), (1, 150)]
    assert sum(rung.passes for rung in rungs) == 160


def test_images_and_time_end_the_rungs() -> None:
    everywhere = torch.ones(2, 8, dtype=torch.bool)
    few = successive_halving(lambda rung: rung.places.double(), everywhere, 10, 10**6, 25)
    assert [rung.images for rung in few] == [10, 20]
    once = successive_halving(lambda _: None, everywhere, 10, 10**6, 1000)
    assert [rung.images for rung in once] == [10]
    assert successive_halving(lambda _: None, everywhere, 10, 0, 7)[0].images == 7
