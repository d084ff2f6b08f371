"""Linear centred kernel alignment (CKA): how alike two representations of the same images are.

CKA (Kornblith et al., 2019) compares the similarities between images that two representations see, so it does not care
about rotations, about scale or about the number of features. It is estimated here from the unbiased HSIC (Song et al.,
2012), averaged over minibatches (Nguyen et al., 2021): with the biased one, independent features of a few hundred
images come out well above 0, and the more so the more features there are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST_IMAGES = 4
"""In a minibatch: with fewer the unbiased HSIC does not exist."""

GROUPS = 20
"""Of minibatches, which the interval leaves out in turn."""

LEAST = GROUPS * LEAST_IMAGES
"""Images that a comparison needs."""

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


def alignment_by_distance(
    groups: Tensor, rows: Sequence[int], columns: Sequence[int], distance: Tensor
) -> tuple[dict[int, tuple[float, float]], tuple[float, float], Tensor]:
    """Whether pairs at distance 0 are more alike than the others.

    Args:
        groups: HSIC (GROUPS, P, P), of disjoint groups of images.
        rows, columns: places among the P of the R and C representations that are paired.
        distance: (R, C) long, of each pair; some are 0 and some are above 0.

    Returns:
        By distance the mean CKA with the half-width of its 95 % interval; mean CKA at distance 0 minus that of all
        other pairs, with its half-width; and (R,) the distance of the most similar column of each row.
    """
    distances = distance.unique().tolist()

    def pairs(mean_hsic: Tensor) -> Tensor:
        return alignment(mean_hsic)[rows][:, columns]

    def means(mean_hsic: Tensor) -> Tensor:
        values = pairs(mean_hsic)
        by_distance = [values[distance == k].mean() for k in distances]
        return torch.stack([*by_distance, values[distance == 0].mean() - values[distance > 0].mean()])

    values, half_widths = (each.tolist() for each in with_interval(groups, means))
    nearest = pairs(groups.mean(0)).nan_to_num(-1).argmax(1)
    by_distance = {k: (value, half) for k, value, half in zip(distances, values, half_widths, strict=False)}
    return by_distance, (values[-1], half_widths[-1]), distance[torch.arange(len(distance)), nearest]
