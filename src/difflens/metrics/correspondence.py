"""Correspondence: where a position of one picture lies in another, by the cosine of feature vectors.

Positions are shares of width and height, (x, y) in [0, 1], so that they do not depend on the sizes of
pictures and maps. (0, 0) is the outer corner of the upper left pixel.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimate = Literal["argmax", "soft-argmax"]

_CHUNK = 2**24  # values of interpolated features at a time


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Return the feature vectors at positions, (P, C), interpolated bilinearly.

    Args:
        features: (C, H, W).
        points: (P, 2) in [0, 1]; beyond the centres of the outer cells, the vectors of these.
    """
    grid = (2 * points.to(features) - 1)[None, None]
    found = F.grid_sample(features[None], grid, "bilinear", "border", align_corners=False)
    return found[0, :, 0].T


def similarity_maps(queries: Tensor, features: Tensor, resolution: int) -> Tensor:
    """Return the cosine of each query with the features at `resolution` x `resolution` positions, (P, R, R).

    Features are interpolated before they are normalised, as in DIFT (Tang et al., 2023).

    Args:
        queries: (P, C).
        features: (C, H, W).
        resolution: R.
    """
    queries = F.normalize(queries, dim=1)
    centres = (torch.arange(resolution, device=features.device) + 0.5) / resolution
    rows = max(1, _CHUNK // (len(features) * resolution))
    parts = []
    for chunk in centres.split(rows):
        y, x = torch.meshgrid(chunk, centres, indexing="ij")
        vectors = F.normalize(sample(features, torch.stack([x, y], dim=-1).reshape(-1, 2)), dim=1)
        parts.append((queries @ vectors.T).reshape(len(queries), len(chunk), resolution))
    return torch.cat(parts, dim=1)


def locate(
    similarity: Tensor, estimate: Estimate = "argmax", temperature: float = 0.02, radius: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return the position that each map of similarities points to, (P, 2) in [0, 1], and its highest value,
    (P,).

    Args:
        similarity: (P, R, R) cosines.
        estimate: "argmax" is the most similar position. "soft-argmax" is the mean of the positions around it,
            weighted by the softmax of cosine / temperature (Zhang et al., 2024).
        temperature: of the softmax.
        radius: half the side of the square around the most similar position that is averaged, as a share of
            the picture's side.
    """
    count, side = similarity.shape[:2]
    scores, flat = similarity.flatten(1).max(dim=1)
    peak = torch.stack([flat % side, flat // side], dim=1)
    if estimate == "argmax":
        return (peak + 0.5) / side, scores
    steps = torch.arange(side, device=similarity.device)
    near = (steps - peak[..., None]).abs() <= radius * side  # (P, 2, R)
    window = near[:, 1, :, None] & near[:, 0, None, :]
    weights = (similarity / temperature).masked_fill(~window, -torch.inf).flatten(1).softmax(dim=1)
    weights = weights.reshape(count, side, side)
    centres = (steps + 0.5) / side
    x, y = (weights.sum(1) * centres).sum(1), (weights.sum(2) * centres).sum(1)
    return torch.stack([x, y], dim=1), scores


def correct(found: Tensor, true: Tensor, length: float, alpha: float = 0.1) -> Tensor:
    """Return (P,) bool: whether each point is at most `alpha` x `length` from its true place.

    The share of correct points is PCK@alpha, the percentage of correct keypoints.

    Args:
        found, true: (P, 2) in pixels.
        length: in pixels: the longer side of the object's box, or of the picture.
    """
    return (found - true).norm(dim=1) <= alpha * length
