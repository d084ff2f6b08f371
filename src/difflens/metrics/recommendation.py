"""The block and noise step to read, from the accuracy of every block at every noise step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.metrics.statistics import Z95, wilson

_MOST_FUSED = 3  # the most blocks and the most noise steps that DifFormer reads, as in its paper


@dataclass(frozen=True)
class Recommendation:
    """The recommended place and fusion, by accuracy on validation images.

    Attributes:
        block, noise_step: the place with the highest accuracy.
        top1, interval: its accuracy in [0, 1] and 95 % interval, on the images that also chose the place.
        cross_validated, cross_validated_interval: accuracy in [0, 1] and 95 % interval where one half of the
            images chooses the place and the other half measures its accuracy, in both directions.
        cheaper: (block, noise step) of the earliest block that does not differ significantly from the best
            place; None if that block is the best one.
        fusion_blocks, fusion_noise_steps: the blocks and noise steps for DifFormer.
        fusion_top1: accuracy in [0, 1] of their averaged scores.
        fusion_cross_validated, fusion_cross_validated_interval: cross-validated accuracy of the fusion, and
            its 95 % interval.
    """

    block: int
    noise_step: int | float
    top1: float
    interval: tuple[float, float]
    cross_validated: float
    cross_validated_interval: tuple[float, float]
    cheaper: tuple[int, int | float] | None
    fusion_blocks: tuple[int, ...]
    fusion_noise_steps: tuple[int | float, ...]
    fusion_top1: float
    fusion_cross_validated: float
    fusion_cross_validated_interval: tuple[float, float]


def recommend(
    scores: Tensor, labels: Tensor, blocks: Sequence[int], noise_steps: Sequence[int | float]
) -> Recommendation:
    """Recommend a place and a fusion, from the scores of every place on validation images.

    Args:
        scores: (T, B, V, K) class scores, made `comparable` between places; NaN at places that are not to
            be recommended.
        labels: (V,) long.
        blocks, noise_steps: the B blocks and T noise steps.
    """
    left_out = scores[:, :, 0, 0].isnan()
    correct = scores.argmax(-1) == labels
    t, b = _best_cell(correct, left_out)
    count = len(labels)
    hits = int(correct[t, b].sum())
    # two-fold cross-validation: one half of each class chooses, the other half measures
    half = torch.empty(count, dtype=torch.long)
    half[labels.argsort(stable=True)] = torch.arange(count) % 2
    cross_hits = fused_cross_hits = 0
    for measuring in (half == 0, half == 1):
        cell = _best_cell(correct[..., ~measuring], left_out)
        cross_hits += int(correct[cell][measuring].sum())
        fusion = _fusion(scores[:, :, ~measuring], labels[~measuring], cell)
        fused_cross_hits += _fused_hits(scores[:, :, measuring], labels[measuring], *fusion)
    ts, bs = _fusion(scores, labels, (t, b))
    cheap_t, cheap_b = _cheapest(correct, left_out, (t, b))
    return Recommendation(
        block=blocks[b],
        noise_step=noise_steps[t],
        top1=hits / count,
        interval=wilson(hits, count),
        cross_validated=cross_hits / count,
        cross_validated_interval=wilson(cross_hits, count),
        cheaper=None if cheap_b == b else (blocks[cheap_b], noise_steps[cheap_t]),
        fusion_blocks=tuple(sorted(blocks[k] for k in bs)),
        fusion_noise_steps=tuple(sorted(noise_steps[k] for k in ts)),
        fusion_top1=_fused_hits(scores, labels, ts, bs) / count,
        fusion_cross_validated=fused_cross_hits / count,
        fusion_cross_validated_interval=wilson(fused_cross_hits, count),
    )


def comparable(scores: Tensor) -> Tensor:
    """Return the scores (V, K) of one place on a scale that all places share, in the range of float16."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-6).mean()


def _best_cell(correct: Tensor, left_out: Tensor) -> tuple[int, int]:
    """Return the indices (t, b) with the most hits in (T, B, V) bool, without those of `left_out`, (T, B).

    Among equal cells, the earliest block wins, then the first noise step.
    """
    hits = correct.sum(-1).masked_fill(left_out, -1).T.flatten()
    b, t = divmod(int(hits.argmax()), correct.shape[0])
    return t, b


def _cheapest(correct: Tensor, left_out: Tensor, best: tuple[int, int]) -> tuple[int, int]:
    """Return (t, b) of the earliest block with a place whose paired 95 % interval to the best includes 0.

    Places of `left_out`, (T, B), do not count.
    """
    difference = correct.double() - correct[best].double()
    half_width = Z95 * difference.std(-1) / correct.shape[-1] ** 0.5
    equal = (difference.mean(-1) + half_width >= 0) & ~left_out
    equal[best] = True
    b = int(equal.any(0).nonzero()[0])
    t = int(torch.where(equal[:, b], correct[:, b].sum(-1), -1).argmax())
    return t, b


def _fusion(scores: Tensor, labels: Tensor, best: tuple[int, int]) -> tuple[set[int], set[int]]:
    """Search greedily for the noise steps and blocks whose averaged scores have the most hits.

    The search starts at the best place. Each round adds the block or noise step with the most hits, up to
    three of each. The first addition is made even if it does not help, because one place is not a fusion.
    Places whose scores are NaN are not added.
    """
    left_out = scores[:, :, 0, 0].isnan()
    ts, bs = {best[0]}, {best[1]}
    hits = _fused_hits(scores, labels, ts, bs)
    while True:
        options = [(ts | {t}, bs) for t in range(scores.shape[0]) if t not in ts and len(ts) < _MOST_FUSED]
        options += [(ts, bs | {b}) for b in range(scores.shape[1]) if b not in bs and len(bs) < _MOST_FUSED]
        options = [(t, b) for t, b in options if not left_out[list(t)][:, list(b)].any()]
        if not options:
            return ts, bs
        option_hits = [_fused_hits(scores, labels, *option) for option in options]
        most = max(option_hits)
        if most <= hits and len(ts) * len(bs) > 1:
            return ts, bs
        (ts, bs), hits = options[option_hits.index(most)], most


def _fused_hits(scores: Tensor, labels: Tensor, ts: set[int], bs: set[int]) -> int:
    """Return how many images the sum of the scores of the places `ts` x `bs` classifies correctly."""
    total = sum(scores[t, b].float() for t in ts for b in bs)
    assert isinstance(total, Tensor)
    return int((total.argmax(-1) == labels).sum())
