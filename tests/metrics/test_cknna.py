"""CKNNA, pair by pair."""

import math

import pytest
import torch

from difflens.metrics.cka import alignment, gram, hsic
from difflens.metrics.cknna import cknna


def features(seed: int, size: int) -> torch.Tensor:
    return torch.randn(12, size, generator=torch.Generator().manual_seed(seed)) + 0.3


def direct(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    """Huh et al. (2024), appendix A, with U-centred kernels."""

    def neighbours(z: torch.Tensor) -> list[set[int]]:
        cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
        cosine.fill_diagonal_(-2)
        return [set(row.argsort(descending=True)[:k].tolist()) for row in cosine]

    def align(a: torch.Tensor, b: torch.Tensor) -> float:
        near_a, near_b, kernel_a, kernel_b = neighbours(a), neighbours(b), gram(a), gram(b)
        return sum(float(kernel_a[i, j] * kernel_b[i, j]) for i in range(12) for j in near_a[i] & near_b[i])

    return align(x, y) / math.sqrt(align(x, x) * align(y, y))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cknna_is_that_of_mutual_neighbours(k: int) -> None:
    x, noise = features(0, 5), features(1, 5)
    for y in (noise, x + 0.5 * noise):
        assert cknna(x, y, k) == pytest.approx(direct(x, y, k), abs=1e-5)


def test_with_all_images_as_neighbours_it_is_cka() -> None:
    x, y = features(0, 5), features(1, 3)
    expected = alignment(hsic(torch.stack([gram(x), gram(y)])))[0, 1]
    assert cknna(x, y, 11) == pytest.approx(float(expected))
    assert cknna(x, y, 500) == pytest.approx(float(expected))


def test_scale_and_rotation_do_not_matter() -> None:
    x = features(0, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2))).Q
    assert cknna(x, 3 * x @ rotation, 3) == pytest.approx(1, abs=1e-5)
    assert math.isnan(cknna(x, torch.ones(12, 2), 3))
