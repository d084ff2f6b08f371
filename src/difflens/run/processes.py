"""The processes and the device of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin


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
        # without a GPU, accelerate recognises several processes only with cpu=True
        cpu=device == "cpu" or not torch.accelerator.is_available(),
        # difflens has options of its own for both: a user's `accelerate config` is for other programs
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if process.device.type == "cuda":
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
    theirs, precision = [kind._shared_state for kind in kinds], torch.get_float32_matmul_precision()
    for kind in kinds:
        kind._shared_state = {}
    try:
        yield accelerator()
    finally:
        for kind, state in zip(kinds, theirs, strict=True):
            kind._shared_state = state
        torch.set_float32_matmul_precision(precision)


def leave_together() -> None:
    """Wait for all processes and close their communication; an end before that can abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
