"""Statistics of features that need no labels: detail, rank, agreement between noise draws, and similarity of
neighbouring blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from difflens.metrics.cka import LEAST_IMAGES, alignment, gram, hsic
from difflens.metrics.classifiers import Standardiser
from difflens.metrics.geometry import effective_rank

LEAST = 2 * LEAST_IMAGES
"""The smallest number of images: half of them must still have an unbiased HSIC."""


def high_frequency_share(maps: Tensor) -> Tensor:
    """Return the share of each image's spatial energy above half the highest frequency, (N,) in [0, 1].

    Energies are squared magnitudes of the Fourier transform over rows and columns, summed over channels. The
    mean of a map, frequency 0, does not count. A-SelecT (Liu et al., 2026) chooses the noise level at which
    this share is largest.

    Args:
        maps: (N, C, H, W).

    Returns:
        NaN for a map that is the same everywhere, and for one of a side below 4: it has no low frequencies.
    """
    height, width = maps.shape[-2:]
    energy = torch.fft.fft2(maps.float()).abs().double().square().sum(1)
    rows, columns = (torch.fft.fftfreq(side, device=maps.device).abs() for side in (height, width))
    frequency = torch.maximum(rows[:, None], columns)  # in cycles per cell; the highest is 1 / 2
    varying = (energy * (frequency > 0)).sum((1, 2))
    high = (energy * (frequency > 0.25)).sum((1, 2))
    return torch.where((varying > 0) & (min(height, width) >= 4), high / varying, torch.nan)


def draw_agreement(first: Tensor, second: Tensor) -> float:
    """Return the share of the features' variance that belongs to the image, not to the noise, at most 1.

    It is the intraclass correlation of two noise draws: their covariance over images, divided by the mean
    of their variances, each summed over features. The signal-to-noise ratio is share / (1 - share). Chance
    makes the share of pure noise a little negative as often as positive. NaN for features that do not vary.

    Args:
        first, second: (N, D) features of the same images with two noise draws.
    """
    a, b = (draw.double() - draw.double().mean(0) for draw in (first, second))
    total = (a.square().sum() + b.square().sum()) / 2
    return float((a * b).sum() / total) if total > 0 else float("nan")


def neighbour_alignment(grams: Tensor) -> Tensor:
    """Return the mean CKA of each block with the blocks before and after it, (B,) in [-1, 1].

    Args:
        grams: U-centred Gram matrices (B, N, N) of the blocks in their order, as of `cka.gram`.

    Returns:
        NaN for a single block.
    """
    similar = alignment(hsic(grams)).diagonal(1)
    edge = similar.new_full((1,), torch.nan)
    return torch.stack([torch.cat([edge, similar]), torch.cat([similar, edge])]).nanmean(0)


def level_statistics(first: Sequence[Tensor], second: Sequence[Tensor], shares: Tensor) -> dict[str, Tensor]:
    """Return the statistics of every block at one noise level, (B,) float64 each, by name.

    Features are standardised first, over images and both draws, because a sweep's classifiers read them so.

    Args:
        first, second: for each of B blocks, features (N, D) of the same images with two noise draws.
        shares: (B, N), the high-frequency share of each image.
    """
    ranks, agreements, grams = [], [], []
    for one, other in zip(first, second, strict=True):
        standardise = Standardiser(torch.cat([one, other]))
        one, other = standardise(one), standardise(other)
        ranks.append(effective_rank(_smaller_product(one)))
        agreements.append(draw_agreement(one, other))
        grams.append(gram(one))
    return {
        "high_frequency_share": shares.double().nanmean(1),
        "effective_rank": torch.tensor(ranks, dtype=torch.float64),
        "draw_agreement": torch.tensor(agreements, dtype=torch.float64),
        "neighbour_alignment": neighbour_alignment(torch.stack(grams)),
    }


def _smaller_product(features: Tensor) -> Tensor:
    """Return the Gram matrix of features (N, D), (N, N), or their second moment, (D, D): the smaller one."""
    vectors = features.double()
    return vectors @ vectors.T if len(vectors) <= vectors.shape[1] else vectors.T @ vectors
