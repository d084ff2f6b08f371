"""Effective rank, alignment and uniformity against direct computations."""

import math

import pytest
import torch

from difflens.metrics import geometry
from difflens.metrics.geometry import alignment, effective_rank, uniformity


def features(count: int = 40, size: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** -torch.arange(size)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) * scale + 0.5


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    x = features()
    shares = torch.linalg.svdvals(x)
    shares = shares / shares.sum()
    expected = math.exp(sum(-float(p) * math.log(float(p)) for p in shares))
    assert effective_rank(x.T @ x / len(x)) == pytest.approx(expected)
    assert effective_rank(7 * x.T @ x) == pytest.approx(expected)  # scale does not matter
    assert effective_rank(x @ x.T) == pytest.approx(expected)


def test_ranks_that_are_known() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    one = torch.ones(6, 1) @ torch.ones(1, 6)
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)
    assert math.isnan(effective_rank(torch.zeros(3, 3)))


def test_alignment_is_the_mean_distance_of_two_views() -> None:
    x, y = features(), features(seed=1)
    distances = [(a / a.norm() - b / b.norm()).norm().item() for a, b in zip(x, y, strict=True)]
    assert alignment(x, y) == pytest.approx(sum(d**2 for d in distances) / 40)
    assert alignment(x, y, power=1.0) == pytest.approx(sum(distances) / 40)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)


def test_uniformity_is_the_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features()
    unit = [row / row.norm() for row in x]
    pairs = [math.exp(-2 * (unit[i] - unit[j]).norm().item() ** 2) for i in range(40) for j in range(i)]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(x) == pytest.approx(expected)
    monkeypatch.setattr(geometry, "_CHUNK_BYTES", 8 * 40 * 7)  # chunks of seven images
    assert uniformity(x) == pytest.approx(expected)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
