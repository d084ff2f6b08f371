"""Linear centred kernel alignment (CKA): the similarity of two representations of the same images.

CKA (Kornblith et al., 2019) compares the similarities between images in two representations. Rotations, scale
and the number of features do not change it. The estimator is the unbiased HSIC (Song et al., 2012), averaged
over minibatches (Nguyen et al., 2021). The biased HSIC would give values well above 0 for independent
features of a few hundred images, and higher ones for more features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LEAST_IMAGES = 4
"""The smallest minibatch: the unbiased HSIC of fewer images does not exist."""

GROUPS = 20
"""The number of groups of minibatches, which the jackknife leaves out in turn."""

LEAST = GROUPS * LEAST_IMAGES
"""The smallest number of images that a comparison needs."""

_ROUNDING = 1e-6
"""The largest deviation of equal values from their mean in float32, as a share of the largest value."""

_STUDENT_19 = 2.093024
"""The two-sided 95 % quantile of Student's distribution with GROUPS - 1 degrees of freedom."""


def gram(features: Tensor) -> Tensor:
    """Return the U-centred Gram matrix, (n, n) float64 on the CPU, of features (n, ...) of n images.

    The inner product of two such matrices, divided by n (n - 3), is the unbiased HSIC (Székely and Rizzo,
    2014).
    """
    vectors = features.flatten(1).float()
    centred = vectors - vectors.mean(0)  # U-centring would remove the mean too; here it reduces rounding
    # what is left of a value that all images share is rounding
    varying = centred.abs().amax(0) > _ROUNDING * vectors.abs().amax(0)
    centred = centred * varying
    return u_centred((centred @ centred.T).cpu().double())


def u_centred(kernel: Tensor) -> Tensor:
    """Return a symmetric matrix (n, n), n at least 4, with diagonal 0 and sums of rows and columns 0."""
    n = len(kernel)
    assert n >= LEAST_IMAGES, f"{n} images in a minibatch"
    kernel = kernel.clone().fill_diagonal_(0)
    sums = kernel.sum(0) / (n - 2)
    return (kernel - sums - sums[:, None] + kernel.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def hsic(grams: Tensor) -> Tensor:
    """Return the unbiased HSIC of all pairs, (P, P).

    Args:
        grams: U-centred Gram matrices (P, n, n) of the same images.
    """
    n = grams.shape[-1]
    flat = grams.flatten(1)
    return flat @ flat.T / (n * (n - 3))


def alignment(mean_hsic: Tensor) -> Tensor:
    """Return the CKA of all pairs, (P, P) in [-1, 1], from their HSIC, (P, P).

    It is NaN for features that do not vary. CKA_ab = HSIC_ab / sqrt(HSIC_aa HSIC_bb).
    """
    own = mean_hsic.diagonal()
    scale = torch.where(own > 0, own, torch.nan).sqrt()
    return (mean_hsic / scale / scale[:, None]).clamp(-1, 1)


def with_interval(groups: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a statistic of the mean HSIC, and the half-width of its 95 % interval.

    The interval is for other images of the same distribution. It comes from the jackknife, which leaves out
    one group of images at a time, and Student's distribution.

    Args:
        groups: HSIC (GROUPS, P, P) of disjoint groups of images.
        statistic: a function of a mean HSIC (P, P).
    """
    count = len(groups)
    assert count == GROUPS, f"{count} groups"
    total = groups.sum(0)
    without = torch.stack([statistic((total - group) / (count - 1)) for group in groups])
    # the jackknife's standard error: sqrt((G - 1) / G * sum of squared deviations)
    spread = ((count - 1) * (without - without.mean(0)).square().mean(0)).sqrt()
    return statistic(total / count), _STUDENT_19 * spread


def alignment_by_distance(
    groups: Tensor, rows: Sequence[int], columns: Sequence[int], distance: Tensor
) -> tuple[dict[int, tuple[float, float]], tuple[float, float], Tensor]:
    """Compare the CKA of pairs at distance 0 with that of the others.

    Args:
        groups: HSIC (GROUPS, P, P) of disjoint groups of images.
        rows, columns: indices, among the P representations, of the R and C that are paired.
        distance: (R, C) long, distance of each pair, at least 0; some are 0, and some are not.

    Returns:
        1. The mean CKA at each distance, with the half-width of its 95 % interval.
        2. The mean CKA at distance 0 minus that of all other pairs, with the half-width of its 95 % interval.
        3. The distance of the most similar column of each row, (R,) long.
    """
    distances = distance.unique().tolist()

    def pairs(mean_hsic: Tensor) -> Tensor:
        return alignment(mean_hsic)[rows][:, columns]

    def means(mean_hsic: Tensor) -> Tensor:
        values = pairs(mean_hsic)
        by_distance = [values[distance == k].mean() for k in distances]
        return torch.stack([*by_distance, values[distance == 0].mean() - values[distance > 0].mean()])

    values, half_widths = (result.tolist() for result in with_interval(groups, means))
    nearest = pairs(groups.mean(0)).nan_to_num(-1).argmax(1)
    by_distance = {k: (value, half) for k, value, half in zip(distances, values, half_widths, strict=False)}
    return by_distance, (values[-1], half_widths[-1]), distance[torch.arange(len(distance)), nearest]
