"""Each label-free statistic against a direct computation."""

import math

import pytest
import torch

from difflens.metrics.cka import alignment, gram, hsic
from difflens.metrics.geometry import effective_rank
from difflens.metrics.label_free import (
    draw_agreement,
    high_frequency_share,
    level_statistics,
    neighbour_alignment,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [4, 5, 8])
def test_the_high_frequency_share_is_that_of_the_fourier_sums(side: int) -> None:
    maps = random(2, 3, side, side)
    for image, share in zip(maps.double(), high_frequency_share(maps).tolist(), strict=True):
        high = varying = 0.0
        for u in range(side):
            for v in range(side):
                waves = torch.tensor(
                    [[-2j * math.pi * (u * x + v * y) / side for y in range(side)] for x in range(side)],
                    dtype=torch.complex128,
                ).exp()
                energy = float((image * waves).sum((1, 2)).abs().square().sum())
                cycles = max(min(k, side - k) / side for k in (u, v))
                varying += energy * (cycles > 0)
                high += energy * (cycles > 0.25)
        assert share == pytest.approx(high / varying, rel=1e-5)


def test_stripes_are_high_and_slopes_are_low() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(16, 16)
    wave = (2 * math.pi * torch.arange(16) / 16).cos().expand(16, 16)
    flat = torch.full((16, 16), 3.0)
    shares = high_frequency_share(torch.stack([stripes, wave + 5, flat])[:, None])
    assert shares[:2].tolist() == pytest.approx([1, 0], abs=1e-9)
    assert shares[2].isnan()
    assert high_frequency_share(random(2, 3, 3, 3)).isnan().all()


def test_draw_agreement_is_the_share_of_variance_between_images() -> None:
    count, deviation = 20_000, 0.5
    images = random(count, 3)
    first, second = (images + deviation * random(count, 3, seed=seed) for seed in (1, 2))
    assert draw_agreement(first, second) == pytest.approx(1 / (1 + deviation**2), abs=0.01)
    assert draw_agreement(images + 9, images - 4) == pytest.approx(1)
    assert draw_agreement(images, random(count, 3, seed=3)) == pytest.approx(0, abs=0.02)
    assert math.isnan(draw_agreement(torch.ones(5, 2), torch.ones(5, 2)))


def test_draw_agreement_compares_equal_images_with_others() -> None:
    """One minus the mean distance of two draws of an image, over that of draws of two images."""
    first, second = random(9, 4), random(9, 4) + 0.3 * random(9, 4, seed=1)
    first, second = first - first.mean(0), second - second.mean(0)
    squares = torch.cdist(first.double(), second.double()).square()
    same = squares.diagonal().mean()
    assert draw_agreement(first, second) == pytest.approx(float(1 - same / squares.mean()))


def test_neighbours_are_the_blocks_before_and_after() -> None:
    grams = torch.stack([gram(random(12, 5, seed=seed)) for seed in range(3)])
    pairs = alignment(hsic(grams))
    before, after = float(pairs[0, 1]), float(pairs[1, 2])
    expected = [before, (before + after) / 2, after]
    assert neighbour_alignment(grams).tolist() == pytest.approx(expected)
    assert neighbour_alignment(grams[:1]).isnan().all()


def test_the_statistics_of_a_level_are_those_of_its_blocks() -> None:
    first, second = ([random(12, 5, seed=seed), 7 + 3 * random(12, 4, seed=seed + 1)] for seed in (0, 2))
    shares = random(2, 12).square()
    shares[0, 3] = torch.nan
    found = level_statistics(first, second, shares)
    standard = []
    for one, other in zip(first, second, strict=True):
        both = torch.cat([one, other])
        standard.append([(x - both.mean(0)) / both.std(0, correction=0) for x in (one, other)])
    expected = {
        "high_frequency_share": [float(row[~row.isnan()].mean()) for row in shares],
        "effective_rank": [effective_rank(one.T @ one) for one, _ in standard],
        "draw_agreement": [draw_agreement(*pair) for pair in standard],
        "neighbour_alignment": neighbour_alignment(torch.stack([gram(one) for one, _ in standard])).tolist(),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-5), name
