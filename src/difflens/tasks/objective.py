"""What every objective on an extractor's features shares: a head, perhaps an extractor, and one optimiser."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from difflens.models.probe import FeatureModel
from difflens.training.objectives import Objective


class ProbeObjective(Objective):
    """Trains a probe in place.

    Args:
        probe: in training mode from here on.
        batch_size: images of an iteration, over all processes.
        optimizer, rates: of the probe's parameters.
    """

    def __init__(
        self,
        probe: FeatureModel,
        process: Accelerator,
        batch_size: int,
        optimizer: Optimizer,
        rates: LambdaLR,
    ):
        self.probe, self.process, self.batch_size = probe, process, batch_size
        self.optimizer, self.rates = optimizer, rates
        self.remedy = f"lower the learning rate (now {optimizer.param_groups[0]['initial_lr']:g})"
        probe.train()

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser down the gradient of `loss`, ()."""
        self.optimizer.zero_grad(set_to_none=True)
        self.process.backward(loss)
        self.optimizer.step()
        self.rates.step()

    def weights(self) -> list[Tensor]:
        return [*self.probe.own_state().values()]

    def state(self) -> dict[str, Any]:
        return {
            "probe": self.probe.own_state(), "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.probe.load_own_state(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])

    def finish(self) -> None:
        if self.process.num_processes > 1:  # each process kept its own batch statistics
            for buffer in self.probe.buffers():
                broadcast(buffer)
