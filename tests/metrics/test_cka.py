"""The CKA estimator against its definition."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from difflens.metrics.cka import GROUPS, alignment, gram, hsic, u_centred, with_interval
from tests.helpers.cka import direct_hsic


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cka_of(*features: Tensor) -> Tensor:
    return alignment(hsic(torch.stack([gram(each) for each in features])))


def biased_cka(x: Tensor, y: Tensor) -> float:
    """Return linear CKA by the definition of Kornblith et al. (2019)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_against_the_definition() -> None:
    x, y = normal(12, 5), normal(12, 3, seed=1) + 4
    y[:, 0] += x[:, 0]
    estimated = hsic(torch.stack([gram(x), gram(y)]))
    for i, a in enumerate((x, y)):
        for k, b in enumerate((x, y)):
            assert float(estimated[i, k]) == pytest.approx(direct_hsic(a, b), rel=1e-4)


def test_identical_features_and_rotations_and_scales() -> None:
    x = normal(40, 8)
    rotation = torch.linalg.qr(normal(8, 8, seed=1)).Q
    assert torch.allclose(
        cka_of(x, x, x @ rotation, 7 * x, x + 3), torch.ones(5, 5, dtype=torch.float64), atol=1e-5
    )
    stretched = x * torch.linspace(0.1, 5, 8)
    assert cka_of(x, stretched)[0, 1] < 0.9


def test_independent_features_are_unrelated_where_the_biased_estimator_says_otherwise() -> None:
    x, y = normal(200, 100), normal(200, 100, seed=1)
    assert abs(float(cka_of(x, y)[0, 1])) < 0.03
    assert biased_cka(x, y) > 0.2


def test_maps_are_vectors() -> None:
    x = normal(10, 2, 3, 3)
    assert torch.equal(gram(x), gram(x.flatten(1)))


def test_minibatches_give_the_full_batch_on_average() -> None:
    """The mean over all minibatches of five of nine images is exact."""
    x, y = normal(9, 4), normal(9, 6, seed=1)
    y[:, :4] += x
    whole = hsic(torch.stack([gram(x), gram(y)]))
    parts = [
        hsic(torch.stack([gram(x[list(rows)]), gram(y[list(rows)])])) for rows in combinations(range(9), 5)
    ]
    assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=1e-4)


def test_u_centring() -> None:
    centred = u_centred((normal(6, 6) + normal(6, 6).T).double())
    assert torch.allclose(centred.sum(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert not centred.diagonal().any()


@pytest.mark.parametrize("value", [1.0, 0.1, 7.7])
def test_constant_features_have_no_cka(value: float) -> None:
    values = cka_of(torch.full((16, 3), value), normal(16, 3))
    assert values[0].isnan().all()
    assert float(values[1, 1]) == pytest.approx(1)


def test_intervals_cover_the_true_value_about_as_often_as_they_say() -> None:
    """Normal features with a given covariance have the CKA |Sxy|^2 / (|Sxx| |Syy|)."""
    dimensions, share = 6, 0.7
    truth = share**2 / (share**2 + (1 - share) ** 2)
    hits = 0
    for repeat in range(150):
        x, other = (
            normal(GROUPS * 12, dimensions, seed=2 * repeat),
            normal(GROUPS * 12, dimensions, seed=2 * repeat + 1),
        )
        y = share * x + (1 - share) * other
        pairs = zip(x.split(12), y.split(12), strict=True)
        groups = torch.stack([hsic(torch.stack([gram(a), gram(b)])) for a, b in pairs])
        value, half = with_interval(groups, alignment)
        hits += abs(float(value[0, 1]) - truth) <= float(half[0, 1])
    assert 0.88 <= hits / 150 <= 0.99
