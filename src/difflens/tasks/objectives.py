"""The objectives that the tasks share: a probe with any head, and a probe with a dense head."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from difflens.choices import ScheduleKind
from difflens.configs.dense import DenseConfig
from difflens.configs.options import given
from difflens.data.dense.samples import Labels, Samples
from difflens.data.images import to_float
from difflens.models.probe import DenseProbe, FeatureModel
from difflens.run.processes import averaged
from difflens.training.batch_norm import steady_batch_norms
from difflens.training.objectives import Look, Objective, micro_batch
from difflens.training.optimisers import check_moments, epoch_seed, make_optimizer, make_schedule


class ProbeObjective(Objective):
    """Trains a probe in place.

    Args:
        probe: the probe, which is put into training mode.
        batch_size: images in an iteration, over all processes.
        optimizer, rates: the optimiser of the probe's parameters, and its schedule.
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
        steady_batch_norms(probe)

    def update(self, losses: Iterable[Tensor]) -> None:
        """Do one step of the optimiser along the gradient of the sum of `losses`, each ()."""
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            self.process.backward(loss)
        self.optimizer.step()
        self.rates.step()

    def weights(self) -> list[Tensor]:
        return [*self.probe.own_state().values()]

    def state(self) -> dict[str, Any]:
        return {
            "probe": self.probe.own_state(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.probe.load_own_state(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        check_moments(self.optimizer)
        self.rates.load_state_dict(state["rates"])

    def finish(self) -> None:
        if self.process.num_processes > 1:  # each process kept its own batch statistics
            for buffer in self.probe.buffers():
                broadcast(buffer)


Loss = Callable[[Tensor, Tensor, int, list[Labels]], dict[str, Tensor]]
"""A loss: gives its parts for images (B, C, S, S) in [-1, 1], their index, the number of the noise sample,
labels."""


class DenseObjective(ProbeObjective):
    """Trains a dense head, and the extractor if it is trainable, with a loss of several parts.

    Args:
        loss: gives the loss for the module to train, which accelerate has wrapped.

    Raises:
        DiffLensError: the processes do not divide the batch.
    """

    def __init__(
        self,
        probe: DenseProbe,
        samples: Samples,
        loss: Callable[[nn.Module], Loss],
        config: DenseConfig,
        process: Accelerator,
    ):
        self.samples, self.config = samples, config
        self.iterations, batch_size = given(config.iterations), given(config.batch_size)
        self.epoch_iterations = max(1, min(50, self.iterations // 20))
        self.micro_batch = micro_batch(batch_size, process.num_processes, config.accumulate)
        self.module = averaged(probe, process, some_unused=bool(probe.extractor.trained_blocks))
        self.compute = loss(self.module)
        groups = probe.parameter_groups(
            given(config.learning_rate), given(config.weight_decay), config.layer_decay
        )
        optimizer = make_optimizer(given(config.optimizer), *groups, momentum=config.momentum)
        kind: ScheduleKind = given(config.lr_schedule)
        warmup = config.warmup_steps
        if warmup is None:
            warmup = min(100, self.iterations // 10)
        rates = make_schedule(optimizer, kind, self.iterations, warmup, config.step_at, decay_in_warmup=True)
        super().__init__(probe, process, batch_size, optimizer, rates)

    def batches(self, start: int) -> Iterator[Any]:
        rank, world = self.process.process_index, self.process.num_processes
        read = self.samples.training(start, self.iterations, self.batch_size, rank, world)
        return enumerate(read, start=start + 1)

    def step(self, batch: tuple[int, tuple[list[int], list[Tensor], list[Labels]]]) -> Tensor:
        number, (rows, images, labels) = batch
        rank, world = self.process.process_index, self.process.num_processes
        # the seed of dropout and of the sampled regions
        torch.manual_seed(epoch_seed(self.config.seed, number * world + rank))
        starts, losses = range(0, len(rows), self.micro_batch), list[Tensor]()

        def each() -> Iterator[Tensor]:
            for start in starts:
                part = slice(start, start + self.micro_batch)
                # processes exchange gradients once a step, with the last micro-batch
                with nullcontext() if start == starts[-1] else self.process.no_sync(self.module):
                    losses.append(self._loss(number, rows[part], images[part], labels[part]) / len(starts))
                    yield losses[-1].sum()

        self.update(each())
        return torch.stack(losses).sum(0).detach()

    def _loss(self, number: int, rows: list[int], images: list[Tensor], labels: list[Labels]) -> Tensor:
        """Return the parts of the loss, (parts,)."""
        device = self.process.device
        losses = self.compute(
            to_float(torch.stack(images).to(device)),
            self.samples.split.noise_index[rows].to(device),
            number if self.config.fresh_noise else 0,
            [{key: value.to(device) for key, value in each.items()} for each in labels],
        )
        self.parts = [*losses]
        return torch.stack([*losses.values()])

    def where(self, iteration: int) -> str:
        return f"at iteration {iteration}"

    def record(self, look: Look) -> dict[str, Any]:
        parts = dict(zip(self.parts, look.means, strict=True)) if len(self.parts) > 1 else {}
        rate = self.learning_rate
        return {"iteration": look.iteration, "loss": look.loss, **parts, "learning_rate": rate}
