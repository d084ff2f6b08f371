"""Feature vectors in few bytes whose dot products stay close to the cosines of the vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

WANTED = 0.985
"""Rank correlation with exact cosines at which no further component is kept."""

_LADDER = (4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)
_QUERIES, _POSITIONS = 32, 2048  # vectors on which the agreement is measured
_LARGEST = 127  # of a signed byte


@dataclass(frozen=True)
class Projected:
    """M vectors as a few bytes each, and how well their similarities agree.

    The cosine of vectors i and j is about square + offset_i + offset_j + scale^2 codes_i . codes_j. With unit
    vectors v = m + a around their mean m: square = m . m, offset = m . a, and scale x codes is a on its
    principal components.

    Attributes:
        codes: (M, D) int8, the largest principal component first.
        scale: length of a step of the codes.
        offsets: (M,) float32.
        square: the squared length of the mean.
        agreement: Spearman's rank correlation with exact cosines: that of the fifth percentile of positions.
    """

    codes: Tensor
    scale: float
    offsets: Tensor
    square: float
    agreement: float

    def similarities(self, queries: Tensor) -> Tensor:
        """Return the cosines of the vectors at `queries`, (Q,) long, with all vectors, (Q, M)."""
        codes = self.codes.float()
        products = self.scale**2 * (codes[queries] @ codes.T)
        return self.square + self.offsets[queries, None] + self.offsets + products


def project(vectors: Tensor, most: int) -> Projected:
    """Return vectors as bytes: the fewest principal components that keep the order of their cosines.

    Args:
        vectors: (M, C) of any length.
        most: the most components.
    """
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    mean = unit.mean(0)
    centred = unit - mean
    eigenvectors = torch.linalg.eigh(centred.T @ centred).eigenvectors
    scores = centred @ eigenvectors.flip(1)[:, :most]
    scale = max(float(scores.abs().max()) / _LARGEST, 1e-12)
    codes = (scores / scale).round().to(torch.int8)
    offsets = centred @ mean
    generator = torch.Generator().manual_seed(0)
    looked_at = torch.randperm(len(unit), generator=generator)[:_POSITIONS]
    queries = looked_at[:_QUERIES]
    exact = unit[queries] @ unit[looked_at].T
    kept, agreement = codes.shape[1], 0.0
    for count in [*(step for step in _LADDER if step < codes.shape[1]), codes.shape[1]]:
        few = codes[:, :count].double()
        found = offsets[looked_at] + scale**2 * (few[queries] @ few[looked_at].T)
        agreement = float(rank_correlation(exact, found).quantile(0.05))
        kept = count
        if agreement >= WANTED:
            break
    return Projected(codes[:, :kept].contiguous(), scale, offsets.float(), float(mean @ mean), agreement)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each row of two matrices, (Q,), without a correction for ties.

    Args:
        first, second: (Q, M).
    """
    ranks = [values.argsort(dim=1, stable=True).argsort(dim=1).double() for values in (first, second)]
    a, b = (each - each.mean(1, keepdim=True) for each in ranks)
    lengths = (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
    return (a * b).sum(1) / lengths
