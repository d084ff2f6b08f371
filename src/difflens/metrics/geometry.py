"""Measures of one representation that need no labels: effective rank, alignment and uniformity."""

import math

import torch
from torch import Tensor

_CHUNK_BYTES = 64 << 20


def effective_rank(second: Tensor) -> float:
    """Return the effective rank of features, from 1 to D (Roy and Vetterli, 2007).

    It is the exponential of the entropy of the features' singular values, as shares of their sum. The rank of
    N images is at most N. Features are not centred, as in RankMe (Garrido et al., 2023), whose 1e-7 beside
    each share is left out. It is NaN for features that are all 0.

    Args:
        second: (D, D), the mean outer product of the features, or any multiple of it; or their Gram matrix,
            (N, N), which has the same eigenvalues.
    """
    values = torch.linalg.eigvalsh(second.double()).clamp(min=0).sqrt()
    if not float(values.sum()) > 0:
        return math.nan
    return float(torch.special.entr(values / values.sum()).sum().exp())


def alignment(first: Tensor, second: Tensor, power: float = 2.0) -> float:
    """Return the alignment loss, from 0 to 2^power (Wang and Isola, 2020, section 4.1.1); 0 is best.

    It is the mean distance, to a power, between unit vectors of two views of the same image.

    Args:
        first, second: (N, D), a view of each image; N is at least 1.
        power: the exponent.
    """
    distance = (_unit(first) - _unit(second)).norm(dim=1)
    return float(distance.pow(power).mean())


def uniformity(features: Tensor, scale: float = 2.0) -> float:
    """Return the uniformity loss, from -4 scale to 0 (Wang and Isola, 2020, section 4.1.2); lower is better.

    It is the logarithm of the mean of exp(-scale |x - y|^2) over pairs of different images, as unit vectors.
    Pairs are read in chunks, so memory grows with the number of images, not with its square.

    Args:
        features: (N, D), N at least 2.
        scale: the factor of the squared distance.
    """
    assert len(features) > 1, "uniformity is a mean over pairs"
    x, parts = _unit(features), []
    rows = max(1, _CHUNK_BYTES // (8 * len(x)))
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        logarithms = -2 * scale * (1 - chunk @ x.T)  # |x - y|^2 = 2 - 2 x y
        own = torch.arange(len(chunk), device=x.device)
        logarithms[own, own + start] = -math.inf
        parts.append(logarithms.logsumexp((0, 1)))
    return float(torch.stack(parts).logsumexp(0)) - math.log(len(x) * (len(x) - 1))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1)
