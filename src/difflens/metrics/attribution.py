"""Which part of a sum of logits tells classes and images apart."""

from torch import Tensor


def logit_shares(parts: Tensor) -> Tensor:
    """The share of each part in the variance of the logits; shares sum to 1, and one may be negative.

    The variance of a sum is the sum of the parts' covariances with it, which is what is divided here (Pratt, 1987). A
    part with a negative share works against the others. What is the same for all classes, or for all images, tells
    nothing apart and is left out first.

    Args:
        parts: (P, N, K), logits of K classes for N images, as P summands.
    """
    parts = parts.double()
    parts = parts - parts.mean(2, keepdim=True)
    parts = parts - parts.mean(1, keepdim=True)
    total = parts.sum(0)
    return (parts * total).sum((1, 2)) / total.square().sum()
