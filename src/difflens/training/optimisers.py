"""Optimisers and learning-rate schedules, the same for every loop."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from difflens.choices import OptimizerName, ScheduleKind
from difflens.errors import DiffLensError
from difflens.run.memory import require_memory

_POWER = 0.9  # the power of the polynomial decay, the standard in segmentation (Chen et al., 2017)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of a loop's random numbers in one epoch, so that a resumed run draws the same
    numbers."""
    return seed * 1_000_003 + epoch


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with the same learning rate and weight decay.

    Attributes:
        parameters: the parameters; those that need no gradient are ignored.
        learning_rate, weight_decay: the settings of the optimiser.
    """

    parameters: Iterable[nn.Parameter]
    learning_rate: float
    weight_decay: float


def make_optimizer(name: OptimizerName, *groups: ParameterGroup, momentum: float = 0.0) -> Optimizer:
    """Return AdamW or SGD; SGD is without momentum by default, as in the paper's released code.

    Raises:
        DiffLensError: no parameter is trained, or memory is too small.
    """
    settings: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in group.parameters if parameter.requires_grad],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    settings = [group for group in settings if group["params"]]
    trained = [parameter for group in settings for parameter in group["params"]]
    if not trained:
        raise DiffLensError("nothing can be trained: the head has no parameters, as k-NN has none")
    if trained[0].device.type == "cpu":
        size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        copies = 3 if name == "adamw" else 1  # the gradient, and AdamW's two averages
        require_memory(copies * size, "training", "train fewer parameters")
    if name == "sgd":
        return torch.optim.SGD(settings, lr=groups[0].learning_rate, momentum=momentum)
    fused = trained[0].device.type == "cuda"
    return torch.optim.AdamW(settings, fused=fused)


def check_moments(optimizer: Optimizer) -> None:
    """Check that the state of each parameter, as loaded, has its shape.

    Raises:
        DiffLensError: it has another one.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if value is not None and (
                    not isinstance(value, Tensor) or value.shape not in (torch.Size(), parameter.shape)
                ):
                    raise DiffLensError(f"the optimiser's {name} does not fit its parameter")


def make_schedule(
    optimizer: Optimizer,
    kind: ScheduleKind,
    steps: int,
    warmup: int = 0,
    drops: Sequence[float] = (),
    decay_in_warmup: bool = False,
) -> LambdaLR:
    """The learning rate of every optimiser step: linear warm-up, then a decay.

    Args:
        kind: cosine to zero; poly, (1 - x)^0.9 (Chen et al., 2017); step, x0.1 at each of `drops`; or
            constant.
        steps: of the whole training.
        warmup: steps of the linear warm-up.
        drops: shares of `steps`.
        decay_in_warmup: the x of cosine and poly is the share of all steps; else of those after the warm-up.
    """
    start = 0 if decay_in_warmup else warmup

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        x = min(1.0, (step - start) / max(1, steps - start))
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * x))
        if kind == "poly":
            return float((1 - x) ** _POWER)
        if kind == "step":
            return float(0.1 ** sum(step / steps >= drop for drop in drops))
        return 1.0

    return LambdaLR(optimizer, factor)
