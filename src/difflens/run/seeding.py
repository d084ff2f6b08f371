"""Random numbers of one step that leave the caller's as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw on the CPU as after `torch.manual_seed(seed)`; the caller's generators stay as they are.

    `torch.manual_seed` itself would also seed the generators of GPUs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
