"""Successive halving (Jamieson and Talwalkar, 2016): few images for all places, many for the best ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FINALISTS = 4
"""The number of places below which none is left out, so that fusion has something to choose from."""

FIRST_SHARE = 8
"""The first rung reads the budget's images divided by this number."""


@dataclass(frozen=True)
class Rung:
    """One round of successive halving.

    Attributes:
        number: from 0.
        before, images: numbers of images that were read before and that are read at its end.
        places: (T, B) bool, the places that are measured.
    """

    number: int
    before: int
    images: int
    places: Tensor

    @property
    def levels(self) -> int:
        """The number of noise levels that the rung reads."""
        return int(self.places.any(1).sum())

    @property
    def passes(self) -> int:
        """Images x noise levels that the rung reads."""
        return (self.images - self.before) * self.levels


def successive_halving(
    measure: Callable[[Rung], Tensor | None], places: Tensor, first: int, passes: int, most: int
) -> list[Rung]:
    """Measure all places on few images, the better half on twice as many, and so on.

    A rung that cannot be paid in full reads fewer images, if these are at least half as many again as before.

    Args:
        measure: returns the accuracy of a rung's places, (T, B), or None to end after it.
        places: (T, B) bool, the places of the first rung.
        first: the number of images that the first rung reads.
        passes: the budget, in images x noise levels; the first rung is measured at any budget.
        most: the number of images that there are.

    Returns:
        The rungs, at least one.
    """
    rung = Rung(0, 0, min(first, most), places)
    rungs = [rung]
    passes -= rung.passes
    while (accuracy := measure(rung)) is not None:
        kept = better_half(accuracy, rung.places)
        affordable = rung.images + max(0, passes) // int(kept.any(1).sum())
        images = min(2 * rung.images, affordable, most)
        if 2 * images < 3 * rung.images:
            break
        rung = Rung(rung.number + 1, rung.images, images, kept)
        rungs.append(rung)
        passes -= rung.passes
    return rungs


def better_half(accuracy: Tensor, places: Tensor) -> Tensor:
    """Return the better half of the places, rounded up and at least `FINALISTS` if there are as many, (T, B)
    bool.

    Among equal places the earlier block is kept, then the earlier row.

    Args:
        accuracy: (T, B).
        places: (T, B) bool, the places to choose from.
    """
    count = int(places.sum())
    kept = min(count, max(FINALISTS, -(-count // 2)))
    by_block = accuracy.double().masked_fill(~places, -torch.inf).T.flatten()
    chosen = torch.zeros_like(by_block, dtype=torch.bool)
    chosen[by_block.argsort(descending=True, stable=True)[:kept]] = True
    return chosen.unflatten(0, places.T.shape).T.contiguous()
