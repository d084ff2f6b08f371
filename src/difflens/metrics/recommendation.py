"""Where to read a backbone, from how well each block at each noise step classifies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.metrics.statistics import Z95, wilson

# DifFormer reads at most so many blocks and noise steps, as in the paper
_MOST_FUSED = 3


@dataclass(frozen=True)
class Recommendation:
    """Where to read, judged on validation images.

    Attributes:
        block, noise_step: the single place with the highest accuracy.
        top1, interval: its accuracy and 95 % interval, of an image set on which it was also chosen.
        cross_validated, cross_validated_interval: accuracy when one half of the images chooses and the other judges, both
            ways.
        cheaper: (block, noise step) of the earliest block that the images do not tell from the best; None if that is
            the best itself.
        fusion_blocks, fusion_noise_steps: for DifFormer.
        fusion_top1: accuracy of the averaged scores of those.
        fusion_cross_validated, fusion_cross_validated_interval: as `cross_validated`, of that.
    """

    block: int
    noise_step: int
    top1: float
    interval: tuple[float, float]
    cross_validated: float
    cross_validated_interval: tuple[float, float]
    cheaper: tuple[int, int] | None
    fusion_blocks: tuple[int, ...]
    fusion_noise_steps: tuple[int, ...]
    fusion_top1: float
    fusion_cross_validated: float
    fusion_cross_validated_interval: tuple[float, float]


def recommend(
    scores: Tensor, labels: Tensor, blocks: Sequence[int], noise_steps: Sequence[int]
) -> Recommendation:
    """Where to read, from scores of every place on validation images.

    Args:
        scores: (T, B, V, K), made `comparable` between places.
        labels: (V,) long.
        blocks, noise_steps: B and T of them.
    """
    correct = scores.argmax(-1) == labels
    t, b = _best_cell(correct)
    count = len(labels)
    hits = int(correct[t, b].sum())
    cross_validated = fused_cross_validated = 0
    for judges in (torch.arange(count) % 2 == 0, torch.arange(count) % 2 == 1):
        place = _best_cell(correct[..., ~judges])
        cross_validated += int(correct[place][judges].sum())
        chosen = _fusion(scores[:, :, ~judges], labels[~judges], place)
        fused_cross_validated += _fused_hits(scores[:, :, judges], labels[judges], *chosen)
    ts, bs = _fusion(scores, labels, (t, b))
    cheap_t, cheap_b = _cheapest(correct, (t, b))
    return Recommendation(
        blocks[b], noise_steps[t], hits / count, wilson(hits, count), cross_validated / count, wilson(cross_validated, count),
        None if cheap_b == b else (blocks[cheap_b], noise_steps[cheap_t]),
        tuple(sorted(blocks[k] for k in bs)), tuple(sorted(noise_steps[k] for k in ts)),
        _fused_hits(scores, labels, ts, bs) / count, fused_cross_validated / count, wilson(fused_cross_validated, count),
    )  # fmt: skip


def comparable(scores: Tensor) -> Tensor:
    """Scores (V, K) of one place on a scale that all places share, in the range of float16."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6).mean()


def _best_cell(correct: Tensor) -> tuple[int, int]:
    """(t, b) of the most hits in (T, B, V); of equal ones the earliest block, then the first noise step."""
    hits = correct.sum(-1).T.flatten()
    b, t = divmod(int(hits.argmax()), correct.shape[0])
    return t, b


def _cheapest(correct: Tensor, best: tuple[int, int]) -> tuple[int, int]:
    """(t, b) of the earliest block with a place whose paired 95 % interval to the best place includes 0."""
    difference = correct.double() - correct[best].double()
    half = Z95 * difference.std(-1) / correct.shape[-1] ** 0.5
    near = difference.mean(-1) + half >= 0
    near[best] = True
    b = int(near.any(0).nonzero()[0])
    t = int(torch.where(near[:, b], correct[:, b].sum(-1), -1).argmax())
    return t, b


def _fusion(scores: Tensor, labels: Tensor, best: tuple[int, int]) -> tuple[set[int], set[int]]:
    """Noise steps and blocks whose averaged scores do best, found greedily from the best place.

    Each round adds the block or the noise step that helps most, to at most three of each. The first addition is made
    even if it does not help, since one place is no fusion.
    """
    ts, bs = {best[0]}, {best[1]}
    reached = _fused_hits(scores, labels, ts, bs)
    while True:
        options = [(ts | {t}, bs) for t in range(scores.shape[0]) if t not in ts and len(ts) < _MOST_FUSED]
        options += [(ts, bs | {b}) for b in range(scores.shape[1]) if b not in bs and len(bs) < _MOST_FUSED]
        if not options:
            return ts, bs
        values = [_fused_hits(scores, labels, *option) for option in options]
        found = max(values)
        if found <= reached and len(ts) * len(bs) > 1:
            return ts, bs
        (ts, bs), reached = options[values.index(found)], found


def _fused_hits(scores: Tensor, labels: Tensor, ts: set[int], bs: set[int]) -> int:
    total = sum(scores[t, b].float() for t in ts for b in bs)
    assert isinstance(total, Tensor)
    return int((total.argmax(-1) == labels).sum())
