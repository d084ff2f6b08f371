"""The contract between the training loop and what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Look:
    """What the loop sees when it waits for the device and looks at the loss.

    Attributes:
        iteration: how many are done.
        losses: of every iteration since the last look, the mean over all processes, (n, parts) float32 on the
            CPU.
        images_per_second: since the last look, over all processes.
        seconds: of training so far, over all sittings.
    """

    iteration: int
    losses: Tensor
    images_per_second: float
    seconds: float

    @property
    def means(self) -> list[float]:
        """Of each part of the loss; added up in float32, one iteration after another."""
        return [float(total) / len(self.losses) for total in reduce(torch.add, self.losses)]

    @property
    def loss(self) -> float:
        return sum(self.means)


class Objective(ABC):
    """What the loop trains: modules, their optimisers, and the loss.

    Whatever is random in an iteration is a function of the seed and the iteration, so that a resumed run ends
    as an uninterrupted one does.

    Attributes:
        iterations: of the whole training.
        epoch_iterations: those of an epoch, at whose end the loop looks at the loss.
        batch_size: images of an iteration, over all processes.
        rates: the schedule of the learning rate.
        remedy: what helps against a loss that is not finite.
        counter, counted: a checkpoint says under this name how often so many iterations are done.
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
        """Of the next iteration."""
        return float(self.rates.get_last_lr()[0])

    @abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """The batches of this process from iteration `start` on (iterations count from 0)."""

    @abstractmethod
    def step(self, batch: Any) -> Tensor:
        """One step of every optimiser.

        Returns:
            This process's mean loss before the step, detached: () or, of several parts that are added,
            (parts,).
        """

    @abstractmethod
    def weights(self) -> list[Tensor]:
        """What must be finite for the training to go on."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state` goes on as if nothing had happened."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def where(self, iteration: int) -> str:
        """Iteration `iteration`, from 1, in words: "in epoch 3"."""

    @abstractmethod
    def record(self, look: Look) -> dict[str, Any] | None:
        """A line for the log, or None if the look is not at the end of an epoch."""

    def finish(self) -> None:  # noqa: B027
        """After the last iteration."""
