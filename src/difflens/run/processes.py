"""The processes and the device of a run."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def accelerator(device: str | None = None) -> Accelerator:
    """The processes and the device of this run: what `accelerate launch` or `torchrun` started, or one process.

    Args:
        device: "cpu" keeps a run off the GPU; None takes what is there.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        # accelerate keeps its first device for the whole process; each of our runs chooses its own
        AcceleratorState._reset_state(reset_partial_state=True)
    # where there is no GPU, accelerate takes several processes for what they are only if told so
    process = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
    if process.device.type == "cuda":
        # heads train in float32: their matrix products in TF32 (10 bits of mantissa), as convolutions are by default
        torch.set_float32_matmul_precision("high")
    return process


def leave_together() -> None:
    """The last thing that a process of several does: to end while the communication is still open can abort it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
