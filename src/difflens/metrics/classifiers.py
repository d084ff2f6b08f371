"""Classifiers without a training loop: ridge, logistic regression and weighted nearest neighbours.

They read features as matrices (N, D). All values of a hyperparameter (strength, number of neighbours) are
computed at once, because they share most of the work.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

NEIGHBOURS = (5, 10, 20, 200)
"""The numbers of neighbours to evaluate, as in DINO (Caron et al., 2021)."""

TEMPERATURE = 0.07
"""The temperature of the neighbours' votes, as in DINO (Caron et al., 2021)."""

RIDGE_STRENGTHS = tuple(10.0**power for power in (-5, -4, -3, -2, -1, 0, 1))
"""Strengths of ridge regression on standardised features, as multiples of the number of images."""

LOGISTIC_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths of logistic regression's penalty on standardised features, for the mean loss of an image."""

# enough queries to tell numbers of neighbours apart, and few enough to be fast
_MOST_QUERIES = 5000

# images of the bank whose unit vectors are in memory at once
_PIECE = 2**16


class Linear:
    """A linear classifier with the scores `features @ weight + bias`; weight (D, K), bias (K,)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias = weight, bias

    def __call__(self, features: Tensor) -> Tensor:
        """Return scores (N, K) float32 of features (N, D)."""
        return features.float() @ self.weight.float() + self.bias.float()


class Standardiser:
    """A map of features to mean 0 and variance 1, as measured on features (N, D); constant ones become 0."""

    def __init__(self, features: Tensor):
        features = features.float()
        self.mean = features.mean(0)
        deviation = features.std(0, correction=0)
        varies = deviation > 1e-6 * deviation.max()
        self.scale = torch.where(varies, 1 / deviation.clamp(min=1e-30), 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        """Return standardised features (N, D) float32."""
        return (features.float() - self.mean) * self.scale


class Ridge(Linear):
    """A ridge classifier.

    Attributes:
        left_out_top1: leave-one-out accuracy on the training images, in [0, 1].
    """

    def __init__(self, weight: Tensor, bias: Tensor, left_out_top1: float):
        super().__init__(weight, bias)
        self.left_out_top1 = left_out_top1


def ridge(features: Tensor, labels: Tensor, classes: int, strengths: Iterable[float]) -> list[Ridge]:
    """Return a ridge classifier for each strength: least squares on one-hot labels with an L2 penalty.

    The penalty is on the weights, not on the bias. One eigendecomposition serves all strengths: that of the D
    x D scatter matrix or of the N x N Gram matrix, whichever is smaller. The leverage of each image gives the
    leave-one-out predictions (Hastie et al., The Elements of Statistical Learning, section 7.10).

    Args:
        features: (N, D).
        labels: (N,) long.
        classes: K.
        strengths: strengths of the penalty, positive, for the sum of squared errors over images.
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
    models = []
    for strength in strengths:
        # weight = (X'X + strength)^-1 X'Y = X' (XX' + strength)^-1 Y
        inverse = 1 / (values + strength)
        weight = vectors @ (inverse[:, None] * (target if primal else vectors.T @ centred))
        weight = weight if primal else x.T @ weight
        predicted = scores @ (inverse[:, None] * target) + y_mean
        # without image i, the error on it is (y_i - predicted_i) / (1 - leverage_i)
        leverage = squares @ inverse + 1 / len(x)
        left_out = y - (y - predicted) / (1 - leverage).clamp(min=1e-12)[:, None]
        left_out_top1 = float((left_out.argmax(1) == labels).double().mean())
        models.append(Ridge(weight, y_mean - x_mean @ weight, left_out_top1))
    return models


def logistic(
    features: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], steps: int = 100
) -> list[Linear]:
    """Return a multinomial logistic regression for each strength, with an L2 penalty on the weights.

    The penalty is not on the bias. Full-batch L-BFGS goes from the strongest penalty to the weakest; each fit
    starts from the last one.

    Args:
        features: (N, D).
        labels: (N,) long.
        classes: K.
        strengths: the loss is the mean cross-entropy + strength / 2 * sum of squared weights.
        steps: the largest number of iterations for one strength.
    """
    x = features.float()
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    models: dict[float, Linear] = {}
    for strength in sorted(set(strengths), reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=steps,
            tolerance_grad=1e-5,
            tolerance_change=1e-9,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, strength: float = strength) -> Tensor:
            optimizer.zero_grad()
            penalty = strength / 2 * weight.square().sum()
            loss = nn.functional.cross_entropy(x @ weight + bias, labels) + penalty
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]
        models[strength] = Linear(weight.detach().clone(), bias.detach().clone())
    return [models[strength] for strength in strengths]


def held_out_scores(
    classifier: str, features: Tensor, labels: Tensor, held_out: Tensor, choosing: Tensor, classes: int
) -> Tensor:
    """Return scores (V, K) of the held-out images by a classifier that is trained on the others.

    The strength of the penalty, or the number of neighbours, is chosen on those others. Ridge and nearest
    neighbours leave each of them out in turn; logistic regression holds some of them out.

    Args:
        classifier: "ridge", "logistic" or "knn".
        features: (N, D).
        labels: (N,) long.
        held_out: (N,) bool, True for the V held-out images.
        choosing: (N - V,) bool, True for those of the others that logistic regression holds out to choose
            its strength.
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
    """Return the leave-one-out accuracy, in [0, 1], of each number of neighbours.

    Args:
        bank: (N, D) features with labels (N,) long. Of more than 5,000, every (N // 5,000)-th is a query, in
            the order of classes.
        classes: K.
        neighbours: numbers of neighbours.
    """
    own = labels.argsort(stable=True)[:: max(1, len(labels) // _MOST_QUERIES)]
    all_votes = neighbour_votes(bank, labels, bank[own], classes, neighbours, own=own)
    return [float((votes.argmax(1) == labels[own]).double().mean()) for votes in all_votes]


def neighbour_votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    neighbours: Sequence[int],
    temperature: float = TEMPERATURE,
    own: Tensor | None = None,
) -> list[Tensor]:
    """Return the votes of each query's nearest images, (M, K) for each number of neighbours.

    A vote has the weight exp(cosine similarity / temperature) (Wu et al., 2018). Weights are relative to that
    of the nearest neighbour, so that none overflows; only their ratios matter.

    Args:
        bank: (N, D) features with labels (N,) long.
        queries: (M, D) features.
        classes: K.
        neighbours: numbers of neighbours that vote; a number above N means all.
        temperature: temperature of the weights.
        own: (M,) long, positions of the queries in the bank, where they do not vote on themselves; None: the
            queries are not in the bank.
    """
    whole = len(bank) <= _PIECE
    bank = _unit(bank) if whole else bank
    queries = _unit(queries)
    most = min(max(neighbours), len(bank) - (own is not None))
    votes: list[list[Tensor]] = [[] for _ in neighbours]
    # the similarities of one chunk of queries take at most about 64 MB
    # `len` and chunks would fix the number of queries in an exported file
    rows = torch.arange(queries.shape[0], device=bank.device)
    chunks = [rows] if torch.compiler.is_exporting() else rows.split(2**24 // min(len(bank), _PIECE))
    for chunk in chunks:
        similarity, nearest = _nearest(bank, whole, queries[chunk], most, None if own is None else own[chunk])
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        voted = labels[nearest]
        for parts, k in zip(votes, neighbours, strict=True):
            empty = torch.zeros(chunk.shape[0], classes, device=bank.device)
            parts.append(empty.scatter_add_(1, voted[:, :k], weight[:, :k]))
    return [torch.cat(parts) for parts in votes]


def _unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors.float(), dim=1)


def _nearest(
    bank: Tensor, are_unit: bool, queries: Tensor, most: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return cosine similarities, (M, most), descending, and positions in the bank of the nearest images.

    A large bank is read piece by piece: of a million images, unit vectors in float32 take gigabytes.

    Args:
        are_unit: the bank holds unit vectors in float32.
        queries: (M, D) unit vectors.
        own: (M,) long, or None: as in `neighbour_votes`.
    """
    found = []
    for start in range(0, len(bank), _PIECE):
        piece = bank[start : start + _PIECE]
        similarity = queries @ (piece if are_unit else _unit(piece)).T
        if own is not None:
            there = ((own >= start) & (own < start + len(piece))).nonzero()[:, 0]
            similarity[there, own[there] - start] = -math.inf
        values, indices = similarity.topk(min(most, len(piece)))
        found.append((values, indices + start))
    if len(found) == 1:
        return found[0]
    values, indices = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    best = values.topk(most)
    return best.values, indices.gather(1, best.indices)
