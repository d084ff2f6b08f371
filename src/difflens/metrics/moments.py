"""Mean and covariance of many vectors in one pass, and the affine maps that they give."""

from collections.abc import Iterable

import torch
from torch import Tensor

WHITENING_SHARE = 1e-3
"""The regularisation of `whitening`: this share of the mean variance is added to the variance of each
component."""


class Moments:
    """The mean and the scatter of vectors that arrive in batches (Chan et al., 1979), in float64 on the CPU.

    Memory depends on the length of the vectors, not on their number.

    Args:
        size: D, the length of a vector.
        full: the scatter is a matrix; else its diagonal.

    Attributes:
        count: number of vectors.
        mean: (D,).
        scatter: (D, D), the sum of outer products of deviations from the mean; without `full` (D,).
    """

    def __init__(self, size: int, full: bool = True):
        self.count, self.full = 0, full
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros((size, size) if full else (size,), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors (N, D), or the C channels of maps (N, C, H, W) at every position."""
        if vectors.ndim == 4:
            vectors = vectors.movedim(1, -1).flatten(0, 2)
        if not len(vectors):
            return
        mean = vectors.double().mean(0)
        deviations = vectors.double() - mean
        scatter = deviations.T @ deviations if self.full else deviations.square().sum(0)
        self._merge(len(vectors), mean.cpu(), scatter.cpu())

    def merge(self, others: Iterable["Moments"]) -> None:
        """Add the vectors of other moments, of the same size and kind."""
        for other in others:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if not count:
            return
        step = mean - self.mean
        products = torch.outer(step, step) if self.full else step.square()
        self.scatter += scatter + products * (self.count * count / total)
        self.mean += step * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """The covariance (D, D), without `full` the variances (D,), of at least one vector."""
        assert self.count, "moments of no vectors"
        return self.scatter / self.count

    @property
    def second(self) -> Tensor:
        """The mean outer product (D, D), without `full` the mean square (D,), of at least one vector."""
        product = torch.outer(self.mean, self.mean) if self.full else self.mean.square()
        return self.covariance + product


def standardising(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return scale (D,) and shift (D,) of x * scale + shift, which has mean 0 and variance 1.

    Components that do not vary become 0.

    Args:
        moments: those of x, without `full`.
    """
    assert not moments.full, "the diagonal is enough"
    deviation = moments.covariance.sqrt()
    varies = deviation > 1e-6 * deviation.max()
    scale = torch.where(varies, 1 / deviation.clamp(min=1e-30), 0.0)
    return scale, -moments.mean * scale


def whitening(moments: Moments, share: float = WHITENING_SHARE) -> tuple[Tensor, Tensor]:
    """Return a matrix (D, D) and a shift (D,): matrix @ x + shift has mean 0 and nearly unit covariance.

    ZCA whitening (Bell and Sejnowski, 1997): of all whitening maps, the one that changes x least. With the
    covariance V diag(v) V^T the matrix is V diag(v + share * mean(v))^(-1/2) V^T. Vectors that do not vary at
    all become 0.

    Args:
        moments: those of x, with `full`.
        share: regularisation, at least 0. It keeps directions of little variance, which hold rounding errors
            and noise, from being blown up.
    """
    assert moments.full, "whitening needs a covariance matrix"
    variances, vectors = torch.linalg.eigh(moments.covariance)
    variances = variances.clamp(min=0)
    added = variances + share * variances.mean()
    inverse = torch.where(added > 0, added.clamp(min=1e-60).rsqrt(), 0.0)
    matrix = (vectors * inverse) @ vectors.T
    return matrix, -matrix @ moments.mean
