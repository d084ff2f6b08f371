"""The place that label-free statistics suggest, and how sure it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = {"effective_rank": 1, "draw_agreement": 1}
"""The statistics that decide, and 1 or -1 where high or low values suggest a place."""


@dataclass(frozen=True)
class Suggestion:
    """A place to read, suggested without labels.

    Attributes:
        block, noise_step: the place with the highest score.
        score: its score, in [0, 1].
        halves: the number of random halves of the images that were asked too.
        places: how many halves suggest (block, noise step), from the most to the least; they sum to `halves`.
    """

    block: int
    noise_step: int | float
    score: float
    halves: int
    places: tuple[tuple[int, int | float, int], ...]

    @property
    def agreeing(self) -> int:
        """The number of halves that suggest the same place."""
        return sum(count for block, t, count in self.places if (block, t) == (self.block, self.noise_step))


def suggest_place(
    score: Tensor, halves: Sequence[Tensor], blocks: Sequence[int], noise_steps: Sequence[int | float]
) -> Suggestion:
    """Suggest the place with the highest score; among equal ones the earliest block, then the first row.

    Args:
        score: (T, B), of all images.
        halves: (T, B) each, of halves of the images.
        blocks, noise_steps: the B blocks and T noise levels.
    """

    def best(score: Tensor) -> tuple[int, int | float]:
        b, t = divmod(int(score.T.flatten().argmax()), len(noise_steps))
        return blocks[b], noise_steps[t]

    block, t = best(score)
    counts = Counter(best(half) for half in halves)
    return Suggestion(
        block=block,
        noise_step=t,
        score=float(score.max()),
        halves=len(halves),
        places=tuple((*place, count) for place, count in counts.most_common()),
    )


def combined_score(statistics: Mapping[str, Tensor], directions: Mapping[str, int] = DIRECTIONS) -> Tensor:
    """Return the mean rank of each place over the statistics that decide, (T, B) in [0, 1].

    Ranks do not depend on the scale of a statistic, which differs between networks. 1 is the most promising
    place by all of them. A place without a value, NaN, has the middle rank.

    Args:
        statistics: (T, B), by name.
        directions: 1 or -1, by name of each statistic that decides.
    """
    return torch.stack([_ranks(sign * statistics[name]) for name, sign in directions.items()]).mean(0)


def _ranks(values: Tensor) -> Tensor:
    """Return the share of other places with lower values, equal ones by half, in [0, 1]; NaN becomes 1/2."""
    flat = values.double().flatten()
    known = ~flat.isnan()
    ranks = torch.full_like(flat, 0.5)
    if (others := int(known.sum()) - 1) > 0:
        there = flat[known]
        lower = (there[:, None] > there).double() + 0.5 * (there[:, None] == there).double()
        ranks[known] = (lower.sum(1) - 0.5) / others
    return ranks.unflatten(0, values.shape)
