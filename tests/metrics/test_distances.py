"""Distances between sets of features: closed forms, and estimators by their definition."""

import numpy as np
import pytest
import scipy.linalg
import torch

from difflens.metrics.distances import Nearest, frechet_distance, kernel_distance
from difflens.metrics.moments import Moments


def moments(features: torch.Tensor) -> Moments:
    found = Moments(features.shape[1])
    found.add(features)
    return found


def test_nearest_finds_what_a_full_comparison_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, vectors = torch.randn(5, 3, generator=generator), torch.randn(40, 3, generator=generator)
    nearest = Nearest(queries, 3)
    for rows in torch.randperm(40, generator=generator).split(9):
        nearest.add(vectors[rows], rows)
    distances = (queries[:, None] - vectors).norm(dim=2)
    expected = distances.sort(dim=1)
    torch.testing.assert_close(nearest.distances, expected.values[:, :3])
    assert torch.equal(nearest.rows, expected.indices[:, :3])
    few = Nearest(queries, 3)
    few.add(vectors[:2], torch.arange(2))
    assert few.rows.shape == (5, 2)


def test_frechet_distance_equals_the_closed_form_for_gaussians() -> None:
    """For diagonal Gaussians it is sum (m1 - m2)^2 + (s1 - s2)^2; samples come close to it."""
    generator = torch.Generator().manual_seed(0)
    means, scales = torch.tensor([[0.0, 1, -2], [1, 1, 0]]), torch.tensor([[1.0, 2, 0.5], [0.5, 2, 1.5]])
    a, b = (m + s * torch.randn(200_000, 3, generator=generator) for m, s in zip(means, scales, strict=True))
    expected = float((means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum())
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=0.02)


def test_frechet_distance_equals_the_matrix_square_root() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (
        torch.randn(60, 5, generator=generator) @ torch.randn(5, 5, generator=generator) for _ in range(2)
    )
    first, second = (np.cov(each.double().numpy().T) for each in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = np.square((a - b).double().mean(0).numpy()).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(moments(a), moments(a)) == pytest.approx(0, abs=1e-8)
    # fewer images than dimensions: singular covariances
    assert frechet_distance(moments(a[:3]), moments(b[:4])) > 0


def test_kid_equals_its_definition_and_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator) + 1

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / 30
    expected -= 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 36
    assert kernel_distance(a, b, 1, 6, 0)[0] == pytest.approx(expected, rel=1e-5)
    assert kernel_distance(a, b, 1, 4, 0)[1] is None
    every, spread = kernel_distance(a, b, 100, 6, 0)  # each subset would hold all vectors
    assert every == pytest.approx(expected, rel=1e-5)
    assert spread is None
    same = torch.randn(4000, 4, generator=generator)
    mean, spread = kernel_distance(same[:2000], same[2000:], 50, 200, 0)
    assert spread is not None
    assert abs(mean) < 0.5 * spread
