"""What will not fit into main memory is refused from a count, before it is allocated."""

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from torch import nn

from difflens.errors import DiffLensError

M = TypeVar("M", bound=nn.Module)


def require_memory(size: float, what: str, advice: str) -> None:
    """Check that `size` bytes of main memory are free.

    Args:
        what: the thing that takes them, for the message.
        advice: what the user can do.

    Raises:
        DiffLensError: they are not free.
    """
    free = psutil.virtual_memory().available
    if size > free:
        needed = f"{what} takes at least {size / 1e9:,.1f} GB of memory"
        raise DiffLensError(f"{needed}, and {free / 1e9:,.1f} GB are free: {advice}")


def built(make: Callable[[], M], what: str, advice: str) -> M:
    """Return the module that `make` gives, after its parameters are counted without memory.

    Raises:
        DiffLensError: the parameters do not fit.
    """
    try:
        with torch.device("meta"):
            module = make()
    except RuntimeError as error:  # a size beyond 64 bits
        raise DiffLensError(f"{what} is too large: {advice}") from error
    tensors = (*module.parameters(), *module.buffers())
    require_memory(sum(tensor.numel() * tensor.element_size() for tensor in tensors), what, advice)
    return make()
