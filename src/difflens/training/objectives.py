"""The contract between the training loop and what it trains."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from difflens.errors import DiffLensError, counted

_FLAGGED = re.compile(r"param_groups\[\d+\]$|^rates$")


@dataclass(frozen=True)
class Look:
    """The state of the training when the loop waits for the device and looks at the loss.

    Attributes:
        iteration: the number of iterations done.
        losses: (n, parts) float32 on the CPU: the losses of the iterations since the last look, averaged over
            all processes.
        images_per_second: the speed since the last look, over all processes.
        seconds: the seconds of training so far, with those before each resumption.
    """

    iteration: int
    losses: Tensor
    images_per_second: float
    seconds: float

    @property
    def means(self) -> list[float]:
        """The mean of each part of the loss; the sum is taken in float32, in the order of the iterations."""
        return [float(total) / len(self.losses) for total in reduce(torch.add, self.losses)]

    @property
    def loss(self) -> float:
        return sum(self.means)


class Objective(ABC):
    """Base of the objectives that the loop trains: modules, their optimisers, and the loss.

    All that is random in an iteration is a function of the seed and the iteration, so a resumed run gives the
    same result as an uninterrupted one.

    Attributes:
        iterations: the iterations of the whole training.
        epoch_iterations: the iterations of an epoch, at whose end the loop looks at the loss.
        batch_size: images in an iteration, over all processes.
        rates: the schedule of the learning rate.
        remedy: the advice of the error message for a loss that is not finite.
        counter, counted: a checkpoint stores the number of iterations, divided by `counted`, under the name
            `counter`.
    """

    iterations: int
    epoch_iterations: int
    batch_size: int
    rates: LambdaLR
    remedy: str
    counter = "iteration"
    counted = 1

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next iteration."""
        return float(self.rates.get_last_lr()[0])

    @abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """Return the batches of this process from iteration `start` on (iterations count from 0)."""

    @abstractmethod
    def step(self, batch: Any) -> Tensor:
        """Do one step of all optimisers.

        Returns:
            This process's mean loss before the step, detached: () or, of several parts that are added,
            (parts,).
        """

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """Return the weights, which the loop checks to be finite."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return tensors and plain values from which `load_state` restores the objective exactly."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the objective from the result of `state`."""

    @abstractmethod
    def where(self, iteration: int) -> str:
        """Return the position of an iteration, counted from 1, in words: "in epoch 3"."""

    @abstractmethod
    def record(self, look: Look) -> dict[str, Any] | None:
        """Return a record for the log, or None if the look is not at the end of an epoch."""

    def curves(self, look: Look, record: Mapping[str, Any] | None) -> dict[str, float]:
        """Return the points of a look by the names of their curves, for trackers.

        Args:
            record: what `record` returned.
        """
        rate = self.learning_rate
        logged = {name: value for name, value in (record or {}).items() if isinstance(value, int | float)}
        own = {"loss": look.loss, "learning_rate": rate, "images_per_second": look.images_per_second}
        return {**logged, **own}

    def finish(self) -> None:  # noqa: B027
        """Do what is necessary after the last iteration."""


def micro_batch(batch_size: int, processes: int, accumulate: int) -> int:
    """Return the number of images in a micro-batch of one process.

    Raises:
        DiffLensError: the batch does not divide into equal micro-batches.
    """
    parts = processes * accumulate
    if batch_size % parts:
        raise DiffLensError(
            f"batch-size {batch_size} is not a multiple of {parts}: the number of processes, {processes}, "
            f"times --accumulate, {accumulate}"
        )
    return batch_size // parts


def check_alike(own: Any, stored: Any, name: str = "the checkpoint") -> None:
    """Check that a stored state has the names, kinds and shapes of a new one; what is empty now may be full.

    Flags of optimisers and schedules that an earlier PyTorch did not have may be missing; PyTorch sets them.

    Raises:
        DiffLensError: names the first difference.
    """
    if isinstance(own, Mapping):
        known = stored if isinstance(stored, Mapping) else {}
        missing = [key for key in own if key not in known]
        flags = [key for key in missing if own[key] is None or isinstance(own[key], bool)]
        if missing and (missing != flags or not _FLAGGED.search(name)):
            raise DiffLensError(f"{name} has no {missing[0]}")
        for key in (key for key in own if key in known):
            check_alike(own[key], stored[key], f"{key}" if name == "the checkpoint" else f"{name}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(stored, list | tuple) or (own and len(own) != len(stored)):
            raise DiffLensError(f"{name} has not {counted(len(own), 'part')}")
        for number, (mine, theirs) in enumerate(zip(own, stored, strict=False)):
            check_alike(mine, theirs, f"{name}[{number}]")
    elif isinstance(own, Tensor):
        if not isinstance(stored, Tensor) or (own.shape, own.dtype) != (stored.shape, stored.dtype):
            raise DiffLensError(f"{name} is no tensor of shape {tuple(own.shape)} and type {own.dtype}")
    elif isinstance(own, int | float) and not isinstance(own, bool):
        if not isinstance(stored, int | float) or not math.isfinite(stored):
            raise DiffLensError(f"{name} is {stored!r:.60}: it must be a finite number")
    elif own is not None and type(own) is not type(stored):
        raise DiffLensError(f"{name} is no {type(own).__name__}")
