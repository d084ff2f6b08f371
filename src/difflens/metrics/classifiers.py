"""Classifiers that need no training loop: ridge in closed form, logistic regression, weighted nearest neighbours.

They take features as matrices (N, D). What the field tunes of each (strength, number of neighbours) is computed for all
values at once, because most of the work is the same.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

NEIGHBOURS = (5, 10, 20, 200)
"""Numbers of neighbours to evaluate, as in DINO (Caron et al., 2021)."""

TEMPERATURE = 0.07
"""Of the neighbours' votes, as in DINO."""

RIDGE_STRENGTHS = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))
"""Of ridge regression on standardised features, as multiples of the number of images."""

LOGISTIC_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of logistic regression's penalty on standardised features, for the mean loss of an image."""

# enough to tell numbers of neighbours apart, and quick
_MOST_QUERIES = 5000


class Linear:
    """Scores `features @ weight + bias`; weight (D, K), bias (K,)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias = weight, bias

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (N, K) of features (N, D), float32."""
        return features.float() @ self.weight.float() + self.bias.float()


class Standardiser:
    """Features to mean 0 and variance 1, as measured on some features (N, D); constant ones become 0."""

    def __init__(self, features: Tensor):
        features = features.float()
        self.mean = features.mean(0)
        deviation = features.std(0, correction=0)
        known = deviation > 1e-6 * deviation.max()
        self.scale = torch.where(known, 1 / deviation.clamp(min=1e-30), 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) * self.scale


class Ridge(Linear):
    """`left_out_top1`: share of its training images that it classifies right when each is left out in turn."""

    def __init__(self, weight: Tensor, bias: Tensor, left_out_top1: float):
        super().__init__(weight, bias)
        self.left_out_top1 = left_out_top1


def ridge(features: Tensor, labels: Tensor, classes: int, strengths: Iterable[float]) -> list[Ridge]:
    """Least squares on one-hot labels with an L2 penalty on the weights, not on the bias, for each strength.

    One eigendecomposition, of the smaller of the D x D scatter matrix and the N x N Gram matrix, serves all strengths
    and, by the leverage of each image (Hastie et al., The Elements of Statistical Learning, section 7.10), leaving each
    of them out.

    Args:
        features: (N, D).
        labels: (N,) long.
        strengths: of the penalty, each positive, for the sum of squared errors over images.
    """
    x, y = features.double(), nn.functional.one_hot(labels, classes).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = y - y_mean
    x = x - x_mean
    primal = x.shape[0] >= x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if primal else x @ x.T)
    values = values.clamp(min=0)
    # the images in coordinates in which the scatter matrix is diagonal, (N, R)
    scores = x @ vectors if primal else vectors * values.sqrt()
    target, squares = scores.T @ centred, scores.square()
    found = []
    for strength in strengths:
        inverse = 1 / (values + strength)
        weight = vectors @ (inverse[:, None] * (target if primal else vectors.T @ centred))
        weight = weight if primal else x.T @ weight
        predicted = scores @ (inverse[:, None] * target) + y_mean
        leverage = squares @ inverse + 1 / len(x)
        left_out = y - (y - predicted) / (1 - leverage).clamp(min=1e-12)[:, None]
        hits = float((left_out.argmax(1) == labels).double().mean())
        found.append(Ridge(weight, y_mean - x_mean @ weight, hits))
    return found


def logistic(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], steps: int = 100
) -> list[Linear]:
    """Multinomial logistic regression with an L2 penalty on the weights, not on the bias, for each strength.

    Full-batch L-BFGS, from the strongest penalty to the weakest, each starting where the last one ended.

    Args:
        features: (N, D).
        labels: (N,) long.
        strengths: the loss is the mean cross-entropy + strength / 2 * sum of squared weights.
        steps: at most so many iterations a strength.
    """
    x = features.float()
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    found: dict[float, Linear] = {}
    for strength in sorted(set(strengths), reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-9, history_size=10,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(optimizer: torch.optim.LBFGS = optimizer, strength: float = strength) -> Tensor:
            optimizer.zero_grad()
            loss = (
                nn.functional.cross_entropy(x @ weight + bias, labels) + strength / 2 * weight.square().sum()
            )
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]
        found[strength] = Linear(weight.detach().clone(), bias.detach().clone())
    return [found[strength] for strength in strengths]


def held_out_scores(
    classifier: str, features: Tensor, labels: Tensor, held_out: Tensor, choosing: Tensor, classes: int
) -> Tensor:
    """Scores (V, K) of the held-out images by a classifier that is trained on the others.

    The strength of its penalty, or its number of neighbours, is chosen on those others: ridge and nearest neighbours
    leave each of them out in turn, logistic regression holds some of them out.

    Args:
        classifier: "ridge", "logistic" or "knn".
        features: (N, D).
        labels: (N,) long.
        held_out: (N,) bool, V of them true.
        choosing: (N - V,) bool, which of the others logistic regression holds out to choose its strength.
        classes: K.
    """
    x, y, tested = features[~held_out], labels[~held_out], features[held_out]
    if classifier == "knn":
        accuracy = left_out_neighbours(x, y, classes)
        return neighbour_votes(x, y, tested, classes, [NEIGHBOURS[accuracy.index(max(accuracy))]])[0]
    standardise = Standardiser(x)
    x, tested = standardise(x), standardise(tested)
    if classifier == "ridge":
        models = ridge(x, y, classes, [len(x) * strength for strength in RIDGE_STRENGTHS])
        return max(models, key=lambda model: model.left_out_top1)(tested)
    choosing = choosing.to(y.device)
    trials = logistic(x[~choosing], y[~choosing], classes, LOGISTIC_STRENGTHS)
    hits = [int((model(x[choosing]).argmax(1) == y[choosing]).sum()) for model in trials]
    (best,) = logistic(x, y, classes, [LOGISTIC_STRENGTHS[hits.index(max(hits))]])
    return best(tested)


def left_out_neighbours(
    bank: Tensor, labels: Tensor, classes: int, neighbours: Sequence[int] = NEIGHBOURS
) -> list[float]:
    """Accuracy of each number of neighbours on images of the bank, each left out in turn; on some 5,000 of many."""
    own = torch.arange(len(labels), device=bank.device)[:: max(1, len(labels) // _MOST_QUERIES)]
    votes = neighbour_votes(bank, labels, bank[own], classes, neighbours, own=own)
    return [float((each.argmax(1) == labels[own]).double().mean()) for each in votes]


def neighbour_votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    neighbours: Sequence[int],
    temperature: float = TEMPERATURE,
    own: Tensor | None = None,
) -> list[Tensor]:
    """Votes (M, K) of each query's nearest images by cosine similarity, each with the weight exp(similarity / T).

    Weights are relative to the nearest neighbour's, so that none overflows; only their ratios matter.

    Args:
        bank: (N, D) features with labels (N,) long.
        queries: (M, D).
        neighbours: how many vote; a list of votes for each. More than there are means all.
        own: (M,) long, the position of each query in the bank, which then does not vote on itself.
    """
    bank = nn.functional.normalize(bank.float(), dim=1)
    queries = nn.functional.normalize(queries.float(), dim=1)
    most = min(max(neighbours), len(bank) - (own is not None))
    votes: list[list[Tensor]] = [[] for _ in neighbours]
    # as many queries at a time as keep the similarities at some 64 MB
    for chunk in torch.arange(len(queries), device=bank.device).split(max(1, 2**24 // len(bank))):
        similarity = queries[chunk] @ bank.T
        if own is not None:
            similarity.scatter_(1, own[chunk, None], -math.inf)
        nearest = similarity.topk(most)
        weight = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
        voted = labels[nearest.indices]
        for kept, k in zip(votes, neighbours, strict=True):
            none = torch.zeros(len(chunk), classes, device=bank.device)
            kept.append(none.scatter_add_(1, voted[:, :k], weight[:, :k]))
    return [torch.cat(kept) for kept in votes]
