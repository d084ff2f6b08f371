"""The share of each summand of the logits in telling classes and images apart."""

from torch import Tensor


def logit_shares(parts: Tensor) -> Tensor:
    """Return the share of each summand in the variance of the logits, (P,) float64 (Pratt, 1987).

    The variance of a sum is the sum of the summands' covariances with it. The share of a summand is its
    covariance divided by the variance: the shares sum to 1. A summand with a negative share works against the
    others. Values that are equal for all classes, or for all images, tell nothing apart; they are subtracted.

    Args:
        parts: (P, N, K), logits of K classes for N images, as P summands.
    """
    parts = parts.double()
    parts = parts - parts.mean(2, keepdim=True)
    parts = parts - parts.mean(1, keepdim=True)
    # share_p = cov(part_p, total) / var(total)
    total = parts.sum(0)
    return (parts * total).sum((1, 2)) / total.square().sum()
