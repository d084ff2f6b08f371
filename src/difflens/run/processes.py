"""The processes and the device of a run."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def accelerator(device: str | None = None) -> Accelerator:
    """Return the processes and the device of this run: those of `accelerate launch` or `torchrun`, or one
    process.

    Args:
        device: "cpu" keeps the run off the GPU; None takes a GPU if there is one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        # accelerate remembers its first device; each run in this process chooses its own
        AcceleratorState._reset_state(reset_partial_state=True)
    # without a GPU, accelerate recognises several processes only with cpu=True
    process = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
    if process.device.type == "cuda":
        # heads train in float32, with matrix products in TF32 (10 bits of mantissa), the default of
        # convolutions
        torch.set_float32_matmul_precision("high")
    return process


def leave_together() -> None:
    """Wait for all processes and close their communication; an end before that can abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
