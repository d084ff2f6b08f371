"""Linear centred kernel alignment (CKA): how alike two representations of the same images are.

CKA (Kornblith et al., 2019) compares the similarities between images that two representations see, so it does not care
about rotations, about scale or about the number of features. It is estimated here from the unbiased HSIC (Song et al.,
2012), averaged over minibatches (Nguyen et al., 2021): with the biased one, independent features of a few hundred
images come out well above 0, and the more so the more features there are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_IMAGES = 4
"""In a minibatch: with fewer the unbiased HSIC does not exist."""

GROUPS = 20
"""Of minibatches, which the interval leaves out in turn."""

_STUDENT_19 = 2.093024
"""Two-sided 95 % quantile of Student's distribution with GROUPS - 1 degrees of freedom."""


def gram(features: Tensor) -> Tensor:
    """The U-centred Gram matrix, (n, n) float64 on the CPU, of features (n, ...) of n images.

    U-centring (Székely and Rizzo, 2014) makes the inner product of two such matrices, over n (n - 3), the unbiased HSIC.
    """
    vectors = features.flatten(1).float()
    vectors = vectors - vectors.mean(0)  # changes nothing below but the rounding
    return u_centred((vectors @ vectors.T).cpu().double())


def u_centred(kernel: Tensor) -> Tensor:
    """A symmetric matrix (n, n), n at least 4, with zero diagonal and all sums of rows and columns zero."""
    n = len(kernel)
    assert n >= LEAST_IMAGES, f"{n} images in a minibatch"
    kernel = kernel.clone().fill_diagonal_(0)
    sums = kernel.sum(0) / (n - 2)
    return (kernel - sums - sums[:, None] + kernel.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def hsic(grams: Tensor) -> Tensor:
    """Unbiased HSIC of every pair, (P, P), of the same images' U-centred Gram matrices (P, n, n)."""
    n = grams.shape[-1]
    flat = grams.flatten(1)
    return flat @ flat.T / (n * (n - 3))


def alignment(mean_hsic: Tensor) -> Tensor:
    """CKA of every pair, (P, P) in [-1, 1], from their HSIC (P, P); NaN for features that do not vary."""
    own = mean_hsic.diagonal()
    scale = torch.where(own > 0, own, torch.nan).sqrt()
    return (mean_hsic / scale / scale[:, None]).clamp(-1, 1)


def with_interval(groups: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A function of mean HSIC, and the half-width of its 95 % interval for other images of the same kind.

    The jackknife over groups of images (Student's distribution): each group is left out in turn.

    Args:
        groups: HSIC (GROUPS, P, P), of disjoint groups of images.
        statistic: of a mean HSIC (P, P).
    """
    count = len(groups)
    assert count == GROUPS, f"{count} groups"
    total = groups.sum(0)
    without = torch.stack([statistic((total - group) / (count - 1)) for group in groups])
    spread = ((count - 1) * (without - without.mean(0)).square().mean(0)).sqrt()
    return statistic(total / count), _STUDENT_19 * spread
