"""Centred kernel nearest-neighbour alignment (CKNNA, Huh et al., 2024): CKA of nearest neighbours.

CKA compares the similarities of all pairs of images; CKNNA those of images that are near each other in both
representations. With U-centred Gram matrices K and L, as for the unbiased CKA, and M_ij = 1 where j is among
the k nearest neighbours of i in a representation, CKNNA_KL = A_KL / sqrt(A_KK A_LL), with
A_KL = sum_ij M^K_ij M^L_ij K_ij L_ij. With all images as neighbours it is CKA.
"""

import torch
from torch import Tensor

from difflens.metrics.cka import alignment, gram, hsic

NEIGHBOURS = 10
"""The number of nearest neighbours (Huh et al., 2024)."""


def local_gram(features: Tensor, centred: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return the U-centred Gram matrix with 0 for images that are no nearest neighbours, (n, n) float64.

    `cka.hsic` of such matrices and `cka.alignment` of it give CKNNA.

    Args:
        features: (n, ...), at least 4 images. Neighbours are nearest by cosine similarity.
        centred: (n, n), the result of `cka.gram` on these features.
        neighbours: k; a number above n - 1 means all others.
    """
    unit = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(neighbours, len(unit) - 1), dim=1).indices.to(centred.device)
    return torch.zeros_like(centred).scatter_(1, nearest, centred.gather(1, nearest))


def cknna(first: Tensor, second: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the CKNNA of two representations of the same images, in [-1, 1]; NaN if one does not vary.

    Args:
        first, second: (n, ...), at least 4 images.
        neighbours: k.
    """
    local = torch.stack([local_gram(each, gram(each), neighbours) for each in (first, second)])
    return float(alignment(hsic(local))[0, 1])
