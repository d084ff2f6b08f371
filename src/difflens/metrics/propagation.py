"""Labels carried from frame to frame by the similarity of features, and how well masks of objects agree."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**25  # similarities at a time


def carry(
    target: Tensor,
    context: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    neighbours: int = 5,
    radius: int = 12,
    temperature: float = 0.1,
) -> Tensor:
    """Return the labels of a frame, (K, H, W): means over the most similar positions of earlier frames.

    Each position takes the labels of its `neighbours` most similar positions in all context frames together,
    weighted by the softmax of cosine / temperature (Jabri et al., 2020).

    Args:
        target: features of the frame, (C, H, W).
        context: features of earlier frames, (C, H, W) each.
        labels: (K, H, W) of each context frame; shares of the label at each position.
        neighbours: the number of positions.
        radius: the largest distance in cells, along each axis, between a position and its neighbours; 0: any.
        temperature: of the softmax.
    """
    height, width = target.shape[-2:]
    cells = height * width
    known = torch.cat([F.normalize(each.flatten(1), dim=0) for each in context], dim=1)  # (C, M cells)
    values = torch.cat([each.flatten(1) for each in labels], dim=1)  # (K, M cells)
    queries = F.normalize(target.flatten(1), dim=0).T
    number = torch.arange(cells, device=target.device)
    rows, columns = number // width, number % width
    parts = []
    for chunk in number.split(max(1, _CHUNK // known.shape[1])):
        similarity = queries[chunk] @ known
        if radius:
            far = ((rows[chunk, None] - rows).abs() > radius) | (
                (columns[chunk, None] - columns).abs() > radius
            )
            similarity = similarity.masked_fill(far.repeat(1, len(context)), -torch.inf)
        best, where = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
        weights = (best / temperature).softmax(dim=1)  # positions beyond the radius weigh nothing
        parts.append(torch.einsum("qn,kqn->kq", weights, values[:, where]))
    return torch.cat(parts, dim=1).reshape(-1, height, width)


def jaccard(found: Tensor, true: Tensor) -> float:
    """Return J, the intersection over union of two masks, (H, W) bool, in [0, 1]; 1 if both are empty."""
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 1.0


def boundary_f(found: Tensor, true: Tensor, tolerance: float = 0.008) -> float:
    """Return F, the agreement of the outlines of two masks, in [0, 1] (Perazzi et al., 2016).

    Precision is the share of found outline near the true one, recall the share of true outline near the found
    one, and F their harmonic mean.

    Args:
        found, true: (H, W) bool.
        tolerance: what is near, as a share of the diagonal, rounded up to pixels.
    """
    pixels = math.ceil(tolerance * math.hypot(*found.shape))
    first, second = _outline(found), _outline(true)
    counts = int(first.sum()), int(second.sum())
    if not all(counts):
        return float(counts[0] == counts[1])
    precision = int((first & _grown(second, pixels)).sum()) / counts[0]
    recall = int((second & _grown(first, pixels)).sum()) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: Tensor) -> Tensor:
    """Return the pixels that differ from their right, lower or lower right neighbour, (H, W) bool."""
    outline = torch.zeros_like(mask)
    outline[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    outline[:-1] |= mask[:-1] ^ mask[1:]
    outline[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return outline


def _grown(mask: Tensor, radius: int) -> Tensor:
    """Return the pixels within `radius` of a mask, (H, W) bool."""
    steps = torch.arange(-radius, radius + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    near = F.conv2d(mask[None, None].float(), disc[None, None].to(mask.device), padding=radius)
    return near[0, 0] > 0.5
