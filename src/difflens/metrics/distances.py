"""Distances between sets of features: Fréchet distance, kernel distance and nearest neighbours."""

import torch
from torch import Tensor

from difflens.metrics.moments import Moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance between Gaussians with these full moments, of two vectors or more.

    It is |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with unbiased covariances A and B (Dowson and
    Landau, 1982), in squared units of the features. The trace of the root is the sum of the roots of the
    eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    first, second = (moments.scatter / (moments.count - 1) for moments in (a, b))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float | None]:
    """Return the kernel distance of features of any network: its mean and standard deviation over subsets.

    It is the estimator of the kernel inception distance (Binkowski et al., 2018): the unbiased squared
    maximum mean discrepancy with the kernel (x.y / D + 1)^3, on random subsets.

    Args:
        a, b: features (N, D) and (M, D).
        subsets: number of subsets.
        size: size of a subset, or all features if there are fewer.
        seed: seed of the subsets.

    Returns:
        The standard deviation is None for one subset, and where each subset would be all of `a` and of `b`.
    """
    size = min(size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1
    generator = torch.Generator().manual_seed(seed)
    discrepancies = []
    for _ in range(subsets):
        x, y = (part[torch.randperm(len(part), generator=generator)[:size]].double() for part in (a, b))
        # MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), without the pairs of a vector with itself
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        same = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        discrepancies.append(same - 2 * xy.mean())
    values = torch.stack(discrepancies)
    return float(values.mean()), float(values.std()) if subsets > 1 else None


class Nearest:
    """The nearest vectors to some queries, among vectors that come batch by batch.

    Args:
        queries: (Q, D).
        count: number of neighbours of a query.

    Attributes:
        distances: (Q, up to `count`) float32, Euclidean distances, the nearest first.
        rows: (Q, up to `count`) long, numbers of the neighbours.
    """

    def __init__(self, queries: Tensor, count: int):
        self.queries, self.count = queries.cpu().float(), count
        self.distances = torch.empty(len(queries), 0)
        self.rows = torch.empty(len(queries), 0, dtype=torch.long)

    def add(self, vectors: Tensor, rows: Tensor) -> None:
        """Search among vectors (B, D) with the numbers `rows`, (B,) long."""
        # distances from inner products would lose the digits of small ones
        added = torch.cdist(self.queries, vectors.cpu().float(), compute_mode="donot_use_mm_for_euclid_dist")
        distances = torch.cat([self.distances, added], dim=1)
        numbers = torch.cat([self.rows, rows.cpu().expand(len(self.queries), -1)], dim=1)
        best = distances.argsort(dim=1, stable=True)[:, : self.count]
        self.distances, self.rows = distances.gather(1, best), numbers.gather(1, best)
