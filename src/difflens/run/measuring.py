"""Times of alternatives that are compared on this machine, float32 and bfloat16 above all."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch

K = TypeVar("K")

WORTH = 1.1
"""bfloat16 must be more than so many times as fast as float32, whose digits are worth more otherwise."""

_SECONDS = 2.0
# as many pixels as 32 images of side 32
_PIXELS = 32 * 32**2
# a processor without units for bfloat16 emulates it, at a tenth of the speed or less
_EMULATED = 1 / 3


def images_to_measure(side: int) -> int:
    """Return how many images of this side, in pixels, a measurement takes."""
    return max(1, _PIXELS // side**2)


def bfloat16_speedup(step: Callable[[torch.dtype, int], object], images: int) -> float:
    """Return how many times as fast a step is in bfloat16 as in float32.

    One image shows whether the processor emulates bfloat16. If it does not, steps on all images take turns
    for about two seconds.

    Args:
        step: computes in a format on so many images.
        images: the most images of a step.
    """

    def measured(count: int, seconds: float) -> float:
        formats = (torch.float32, torch.bfloat16)
        times = fastest_of_each({dtype: partial(step, dtype, count) for dtype in formats}, seconds)
        return times[torch.float32] / times[torch.bfloat16]

    of_one = measured(1, 0.0)
    return of_one if of_one < _EMULATED else measured(images, _SECONDS)


def fastest_of_each(steps: Mapping[K, Callable[[], object]], seconds: float) -> dict[K, float]:
    """Return the shortest time of each step, in seconds.

    Steps take turns for about `seconds`, after one turn to warm up. The shortest time counts, so that other
    work on the machine weighs little.
    """
    for step in steps.values():
        step()
    shortest = dict.fromkeys(steps, float("inf"))
    end = time.perf_counter() + seconds
    while True:
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            shortest[name] = min(shortest[name], time.perf_counter() - began)
        if time.perf_counter() >= end:
            return shortest
