"""Random numbers of one step that leave the caller's as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give back the state of the generators of the CPU and of `device`."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw on the CPU as after `torch.manual_seed(seed)`; the caller's generators stay as they are.

    `torch.manual_seed` itself would also seed the generators of GPUs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
