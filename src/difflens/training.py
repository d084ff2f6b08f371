"""What every training loop here shares: processes, precision, optimisers, schedules, progress."""

import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Precision = Literal["float32", "bfloat16", "float16"]
OptimizerName = Literal["adamw", "sgd"]
ScheduleKind = Literal["cosine", "step", "constant"]

console = Console(stderr=True)


def warn(problem: str) -> None:
    """One line on standard error, above any progress bar."""
    console.print(f"warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


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


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of what a loop draws in one epoch, so that a resumed run draws the same."""
    return seed * 1_000_003 + epoch


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        parameters: those that need no gradient are passed over.
        learning_rate, weight_decay: of the optimiser.
    """

    parameters: Iterable[nn.Parameter]
    learning_rate: float
    weight_decay: float


def make_optimizer(name: OptimizerName, *groups: ParameterGroup, momentum: float = 0.0) -> Optimizer:
    """AdamW, or SGD, by default without momentum (as the released code trains every head)."""
    settings: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in group.parameters if parameter.requires_grad],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    settings = [group for group in settings if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(settings, lr=groups[0].learning_rate, momentum=momentum)
    fused = settings[0]["params"][0].device.type == "cuda"
    return torch.optim.AdamW(settings, fused=fused)


def make_schedule(
    optimizer: Optimizer, kind: ScheduleKind, total_steps: int, warmup_steps: int = 0, step_every: int = 0
) -> LambdaLR:
    """Learning rate per optimiser step: linear warm-up, then cosine to zero, x0.1 every `step_every`, or level."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "cosine":
            share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        if kind == "step" and step_every:
            return float(0.1 ** (step // step_every))
        return 1.0

    return LambdaLR(optimizer, factor)


def progress_bar(enabled: bool = True) -> Progress:
    """A progress bar on standard error, silent on all processes but one and where `DIFFLENS_QUIET` is set."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled or "DIFFLENS_QUIET" in os.environ,
        refresh_per_second=4 if sys.stderr.isatty() else 0.2,
    )
