"""Operations and memory of a computation, counted on the meta device: on shapes, without computing."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_COLLECT_EVERY = 100  # operations


@dataclass
class Cost:
    """What a computation takes.

    Attributes:
        operations: multiplications and additions of matrix products and convolutions, each counted as one.
        peak: the most bytes that its tensors hold at a time, without those that existed before. Workspaces of
            kernels are not counted.
    """

    operations: float = 0.0
    peak: float = 0.0


@contextmanager
def counting() -> Iterator[Cost]:
    """Fill the yielded `Cost` with what is computed in the context, backward passes included.

    Attention is counted as its matrix products, with all of its weights in memory. Tensors in reference
    cycles are collected after every so many operations, so that the peak is the same each time.
    """
    cost, memory = Cost(), _Memory()
    collects = gc.isenabled()
    gc.freeze()  # what exists needs no search for cycles
    gc.disable()
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, memory:
            yield cost
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    cost.operations, cost.peak = float(counter.get_total_flops()), float(memory.peak)


def cost_of_images(compute: Callable[[int], object], images: int) -> Cost:
    """Return the cost of `compute(images)`.

    Args:
        compute: does the computation for a number of images, on the meta device.
    """
    with counting() as cost:
        compute(images)
    return cost


class _Memory(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.operations = 0
        self.total = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations % _COLLECT_EVERY == 0:
            gc.collect()
        results = func(*args, **(kwargs or {}))
        before = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                key = _key(tensor)
                if key not in before and key not in self.held:
                    self._hold(tensor.untyped_storage())
        return results

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.held[key] = size
        self.total += size
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.total -= self.held.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
