"""Closed-form and memory-based classifiers against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from difflens.metrics import classifiers
from difflens.metrics.classifiers import (
    NEIGHBOURS,
    TEMPERATURE,
    Standardiser,
    left_out_neighbours,
    logistic,
    neighbour_votes,
    ridge,
)


def features(count: int, size: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one cloud for each class; clouds overlap, and features have very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + 1.5 * torch.randn(count, size, generator=generator)
    return x * torch.logspace(-2, 1, size) + 3, labels


@pytest.mark.parametrize(("count", "size"), [(200, 12), (30, 80)], ids=["more images", "more features"])
def test_ridge_equals_scikit_learn_at_every_strength(count: int, size: int) -> None:
    x, y = features(count, size)
    strengths = (1e-2, 1.0, 100.0)
    target = np.eye(4)[y.numpy()]
    for strength, model in zip(strengths, ridge(x, y, 4, strengths), strict=True):
        expected = Ridge(alpha=strength).fit(x.double().numpy(), target)
        np.testing.assert_allclose(model.weight.numpy(), expected.coef_.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(model.bias.numpy(), expected.intercept_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("count", "size"), [(60, 12), (24, 80)], ids=["more images", "more features"])
def test_ridge_leaves_each_image_out_as_training_without_it_would(count: int, size: int) -> None:
    x, y = features(count, size)
    strengths = (1e-1, 30.0, 3000.0)
    accuracies = [model.left_out_top1 for model in ridge(x, y, 4, strengths)]
    for strength, left_out in zip(strengths, accuracies, strict=True):
        hits = 0
        for row in range(count):
            others = torch.arange(count) != row
            target = np.eye(4)[y[others].numpy()]
            expected = Ridge(alpha=strength).fit(x[others].double().numpy(), target)
            hits += int(expected.predict(x[row : row + 1].double().numpy()).argmax() == y[row])
        assert left_out == pytest.approx(hits / count)
    assert len(set(accuracies)) > 1


def test_ridge_on_constant_features_stays_finite() -> None:
    x, y = features(50, 6)
    x[:, 2] = 7
    standardise = Standardiser(x)
    assert standardise(x)[:, 2].eq(0).all()
    (model,) = ridge(standardise(x), y, 4, [1e-3])
    assert model(standardise(x)).isfinite().all()


def test_logistic_regression_equals_scikit_learn() -> None:
    x, y = features(300, 10)
    x = Standardiser(x)(x)
    strengths = (1e-3, 1e-1, 1e-2)
    for strength, model in zip(strengths, logistic(x, y, 4, strengths), strict=True):
        expected = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=2000).fit(
            x.numpy(), y.numpy()
        )
        ours = model(x).softmax(1).numpy()
        np.testing.assert_allclose(ours, expected.predict_proba(x.numpy()), atol=2e-3)


@pytest.mark.parametrize("own", [False, True], ids=["others", "itself left out"])
def test_neighbour_votes_equal_scikit_learn(own: bool) -> None:
    bank, labels = features(120, 9)
    queries = bank if own else features(40, 9, seed=1)[0]
    rows = torch.arange(120) if own else None
    neighbours = [k for k in NEIGHBOURS if k < 119]
    all_votes = neighbour_votes(bank, labels, queries, 4, neighbours, own=rows)
    for k, votes in zip(neighbours, all_votes, strict=True):
        shares = votes / votes.sum(1, keepdim=True)
        if own:
            others = [torch.arange(120) != i for i in range(120)]
            expected = np.concatenate([_scikit(bank[o], labels[o], k, bank[~o]) for o in others])
        else:
            expected = _scikit(bank, labels, k, queries)
        np.testing.assert_allclose(shares.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("own", [False, True], ids=["others", "itself left out"])
def test_a_bank_that_is_read_in_pieces_votes_alike(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = features(120, 9)
    queries, rows = (bank, torch.arange(120)) if own else (features(40, 9, seed=1)[0], None)
    expected = neighbour_votes(bank.half(), labels, queries, 4, [20, 5], own=rows)
    monkeypatch.setattr(classifiers, "_PIECE", 13)
    votes = neighbour_votes(bank.half(), labels, queries, 4, [20, 5], own=rows)
    for mine, theirs in zip(votes, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def _scikit(bank: torch.Tensor, labels: torch.Tensor, k: int, queries: torch.Tensor) -> np.ndarray:
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    )
    return model.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())


def test_queries_are_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours know class 0 and not class 1, and the two come in turn."""
    monkeypatch.setattr(classifiers, "_MOST_QUERIES", 10)
    labels = torch.arange(40) % 2
    bank = torch.nn.functional.one_hot(torch.where(labels == 0, 0, torch.arange(40))).float()
    bank[labels == 1, 0] = 1
    assert left_out_neighbours(bank, labels, 2, [1]) == [0.5]


def test_more_neighbours_than_images_means_all() -> None:
    bank, labels = features(8, 3)
    most, all_of_them = neighbour_votes(bank, labels, bank, 4, [200, 8])
    assert torch.equal(most, all_of_them)
