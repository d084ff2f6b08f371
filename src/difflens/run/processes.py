"""The processes and the device of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def accelerator(device: str | None = None) -> Accelerator:
    """Return the processes and the device of this run: those of `accelerate launch` or `torchrun`, or one
    process.

    Args:
        device: "cpu" keeps the run off the GPU; None takes a GPU if there is one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        # accelerate remembers its first device; each run in this process chooses its own
        AcceleratorState._reset_state(reset_partial_state=True)
    process = Accelerator(
        # without a GPU, accelerate recognises several processes only with cpu=True; Apple's GPUs (MPS) have
        # no float64, in which noise levels and statistics are computed
        cpu=device == "cpu" or not torch.cuda.is_available(),
        # difflens has options of its own for both: a user's `accelerate config` is for other programs
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # processes wait for one that reads a last shard, or draws samples; `torchrun` ends them if it dies
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if process.device.type == "cuda" and float32_products() is not None:
        # heads train in float32, with matrix products in TF32 (10 bits of mantissa), the default of
        # convolutions
        torch.set_float32_matmul_precision("high")
    return process


@contextmanager
def processes_for(process: Accelerator | None) -> Iterator[Accelerator]:
    """Give `process`, or for None one that lasts as long as the context.

    accelerate keeps one state for all accelerators: device, mixed precision and accumulation of gradients.
    That of the caller's own accelerator is put aside meanwhile, and so is the precision of matrix products.
    """
    if process is not None:
        yield process
        return
    kinds: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
    theirs, products = [kind._shared_state for kind in kinds], float32_products()
    for kind in kinds:
        kind._shared_state = {}
    try:
        yield accelerator()
    finally:
        for kind, state in zip(kinds, theirs, strict=True):
            kind._shared_state = state
        if products is not None:
            torch.set_float32_matmul_precision(products)


def float32_products() -> str | None:
    """Return PyTorch's precision of float32 matrix products; None in a program that chooses it for each
    backend."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it mixes the older and the newer switches
        return None


def averaged(module: nn.Module, process: Accelerator, some_unused: bool = False) -> nn.Module:
    """Return `module` on the process's device; with several processes, its gradients are means over all.

    accelerate's own `prepare` would keep every module in memory as long as the process.

    Args:
        some_unused: a backward pass may leave trained parameters without a gradient.
    """
    module = module.to(process.device)
    if process.num_processes == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=some_unused)


def leave_together() -> None:
    """Wait for all processes and close their communication; an end before that can abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
