"""Moments in one pass, standardising and whitening, against direct computations."""

import pytest
import torch

from difflens.metrics.moments import WHITENING_SHARE, Moments, standardising, whitening


def vectors(count: int = 60, size: int = 5) -> torch.Tensor:
    """Correlated vectors far from 0, where a sum of squares would lose digits."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing + 1e4


def moments_of(x: torch.Tensor, full: bool = True) -> Moments:
    moments = Moments(x.shape[1], full)
    for batch in x.split(7):
        moments.add(batch)
    return moments


def test_one_pass_over_batches_gives_mean_and_covariance() -> None:
    x = vectors()
    moments = moments_of(x)
    assert moments.count == 60
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.covariance, x.T.cov(correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.second, x.T @ x / 60)
    diagonal = moments_of(x, full=False)
    torch.testing.assert_close(diagonal.covariance, x.var(0, correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(diagonal.second, x.square().mean(0))


def test_shares_of_several_processes_are_merged() -> None:
    x = vectors()
    first, second, empty = moments_of(x[:11]), moments_of(x[11:]), Moments(5)
    first.merge([empty, second])
    torch.testing.assert_close(first.mean, x.mean(0))
    torch.testing.assert_close(first.covariance, x.T.cov(correction=0), rtol=1e-9, atol=1e-9)


def test_maps_count_every_position() -> None:
    maps = torch.randn(4, 3, 2, 5)
    moments = Moments(3)
    moments.add(maps)
    assert moments.count == 40
    torch.testing.assert_close(moments.mean, maps.double().mean((0, 2, 3)))


def test_standardised_components_have_mean_0_and_variance_1() -> None:
    x = vectors()
    x[:, 2] = 7.0
    scale, shift = standardising(moments_of(x, full=False))
    found = x * scale + shift
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(found.mean(0), torch.zeros(5).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found[:, kept].std(0, correction=0), torch.ones(4).double())
    assert float(found[:, 2].abs().max()) == 0  # what does not vary becomes 0


@pytest.mark.parametrize("share", [0.0, WHITENING_SHARE, 0.5])
def test_whitening_is_the_regularised_inverse_root_of_the_covariance(share: float) -> None:
    x = vectors()
    matrix, shift = whitening(moments_of(x), share)
    covariance = x.T.cov(correction=0)
    regularised = covariance + share * covariance.trace() / 5 * torch.eye(5).double()
    torch.testing.assert_close(matrix @ matrix @ regularised, torch.eye(5).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(matrix, matrix.T)
    found = x @ matrix.T + shift
    torch.testing.assert_close(found.mean(0), torch.zeros(5).double(), atol=1e-7, rtol=0)
    if not share:
        torch.testing.assert_close(found.T.cov(correction=0), torch.eye(5).double(), atol=1e-7, rtol=0)


def test_what_does_not_vary_is_not_blown_up() -> None:
    matrix, shift = whitening(moments_of(torch.full((10, 3), 2.0)))
    assert not matrix.any()
    assert not shift.any()
