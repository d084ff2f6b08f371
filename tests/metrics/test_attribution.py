"""Shares of logits: their sum, and the summands that they credit."""

import pytest
import torch

from difflens.metrics.attribution import logit_shares


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shares_sum_to_one_and_follow_the_variance() -> None:
    parts = torch.stack([3 * normal(5000, 4), normal(5000, 4, seed=1)])
    shares = logit_shares(parts)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares[0]) == pytest.approx(0.9, abs=0.02)  # variances 9 and 1


def test_what_tells_nothing_apart_gets_nothing() -> None:
    signal = normal(50, 4)
    same_for_all_classes = normal(50, 1, seed=1).expand(50, 4) * 100
    same_for_all_images = normal(1, 4, seed=2).expand(50, 4) * 100
    shares = logit_shares(torch.stack([signal, same_for_all_classes, same_for_all_images]))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-5, rtol=0)


def test_what_works_against_the_others_is_negative() -> None:
    signal = normal(50, 4)
    shares = logit_shares(torch.stack([2 * signal, -signal]))
    torch.testing.assert_close(shares, torch.tensor([2.0, -1], dtype=torch.float64), atol=1e-6, rtol=0)
