"""Optimisers and learning-rate schedules, the same for every loop."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from difflens.choices import OptimizerName, ScheduleKind


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
