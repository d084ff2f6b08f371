"""Times of alternatives that are compared on this machine."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")


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
