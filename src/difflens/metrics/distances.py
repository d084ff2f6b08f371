"""Distances between sets of images, from their features alone: Fréchet distance, kernel distance, nearest neighbours."""

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features that come batch by batch; memory does not grow with their number.

    Sums are float64 and taken about the first batch's mean, so that large means cost no digits.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Take in (B, D) features."""
        features = features.cpu().double()
        if not self.count:
            self._origin = features.mean(0)
            self._sum = torch.zeros_like(self._origin)
            self._products = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        centred = features - self._origin
        self.count += len(features)
        self._sum += centred.sum(0)
        self._products += centred.T @ centred

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Those of (N, D) features."""
        moments = cls()
        moments.add(features)
        return moments

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased; of at least two features."""
        return (self._products - self._sum.outer(self._sum) / self.count) / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance between Gaussians with these moments, in units of the features squared.

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with covariances A and B (Dowson and Landau, 1982). The trace of
    the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    first, second = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel inception distance's estimator (Binkowski et al., 2018) on features (N, D) and (M, D) of any network.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, over random subsets.

    Args:
        size: of a subset; of fewer features all are taken.

    Returns:
        Mean and standard deviation over subsets (0 for one).
    """
    size = min(size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        x, y = (each[torch.randperm(len(each), generator=generator)[:size]].double() for each in (a, b))
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        same = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        found.append(same - 2 * xy.mean())
    values = torch.stack(found)
    return float(values.mean()), float(values.std()) if subsets > 1 else 0.0


class Nearest:
    """The nearest of many vectors, which come batch by batch, to some.

    Args:
        queries: (Q, D).
        count: how many to find for each.

    Attributes:
        distances: (Q, up to `count`) float32, Euclidean, the nearest first.
        rows: (Q, up to `count`) long, what `add` called them.
    """

    def __init__(self, queries: Tensor, count: int):
        self.queries, self.count = queries.cpu().float(), count
        self.distances = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.long)

    def add(self, vectors: Tensor, rows: Tensor) -> None:
        """Look among (B, D) vectors called `rows`, (B,) long."""
        # not by way of inner products, which would lose small distances
        found = torch.cdist(self.queries, vectors.cpu().float(), compute_mode="donot_use_mm_for_euclid_dist")
        distances = torch.cat([self.distances, found], dim=1)
        names = torch.cat([self.rows, rows.cpu().expand(len(self.queries), -1)], dim=1)
        best = distances.argsort(dim=1, stable=True)[:, : self.count]
        self.distances, self.rows = distances.gather(1, best), names.gather(1, best)
