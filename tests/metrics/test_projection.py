"""Vectors in few bytes: their similarities keep the order of exact cosines."""

import pytest
import torch
from scipy.stats import spearmanr

from difflens.metrics.projection import WANTED, project, rank_correlation


def features(count: int = 600, channels: int = 48) -> torch.Tensor:
    """Vectors with a large common part and a spectrum that falls, as feature maps have."""
    generator = torch.Generator().manual_seed(5)
    scales = torch.arange(1, channels + 1) ** -1.0
    return 3 + torch.randn(count, channels, generator=generator) * scales


def test_a_rank_correlation_is_spearmans() -> None:
    first, second = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert rank_correlation(first, second).tolist() == pytest.approx(expected)


def test_few_bytes_keep_the_order_of_cosines() -> None:
    vectors = features()
    found = project(vectors, 48)
    assert found.codes.dtype == torch.int8
    assert found.codes.shape[1] < 48
    assert found.agreement >= WANTED
    unit = torch.nn.functional.normalize(vectors, dim=1)
    queries = torch.arange(100)
    exact, shown = unit[queries] @ unit.T, found.similarities(queries)
    assert float(rank_correlation(exact, shown).quantile(0.05)) >= 0.98
    assert float((exact - shown).abs().max()) < 0.02


def test_too_few_components_say_so() -> None:
    noise = torch.randn(600, 64, generator=torch.Generator().manual_seed(5))
    found = project(noise, 4)
    assert found.codes.shape == (600, 4)
    assert found.agreement < 0.9


def test_equal_vectors_have_cosine_one() -> None:
    found = project(torch.ones(20, 5), 8)
    torch.testing.assert_close(found.similarities(torch.tensor([3])), torch.ones(1, 20))
