"""The training loop. Heads on cached or fresh features, dense heads and methods of pre-training all go
through it."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from difflens.errors import DiffLensError
from difflens.ranges import Natural, NonNegative
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.reading import FieldError, field_in, reason
from difflens.training.objectives import Look, Objective, check_alike


class TrainingLoop:
    """A training run, from the start or from the last checkpoint of its run directory.

    Args:
        objective: the objective to train; the constructor loads its state from the checkpoint.
        process: this process.
        run: the run directory for log and checkpoints; None: no log and no checkpoints.
        title: the title of the progress bar.
        look_every: iterations between looks within an epoch; each look waits for the device. None: an epoch.
        checkpoint_seconds: a checkpoint is written at a look if the last one is this old, and at the end.
        max_seconds: stop at a look after so long.

    Attributes:
        iteration: the number of iterations done.
        seconds: the seconds of training up to the last look, with those before each resumption.

    Raises:
        DiffLensError: processes see different checkpoints.
    """

    def __init__(
        self,
        objective: Objective,
        process: Accelerator,
        run: RunDirectory | None = None,
        title: str = "training",
        look_every: int | None = None,
        checkpoint_seconds: float = 0.0,
        max_seconds: float = math.inf,
    ):
        self.objective, self.process, self.run, self.title = objective, process, run, title
        self.look_every = look_every or objective.epoch_iterations
        self.checkpoint_seconds, self.max_seconds = checkpoint_seconds, max_seconds
        self.iteration, self.seconds = 0, 0.0
        state = run.load_checkpoint() if run else None
        if run and state is not None:
            self._restore(state, run.checkpoint_path)
        if run:
            run.cut_log(state["log_lines"] if state else 0)
        if run and len(set(gather_object([self.iteration]))) > 1:
            raise DiffLensError(
                f"the machines do not see the same checkpoint: {run.path} must be a folder that they share"
            )
        self._saved = self.seconds  # at the last checkpoint

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint; raise DiffLensError if it is not one of this training."""
        objective = self.objective
        try:
            done = field_in(state, objective.counter, Natural) * objective.counted
            self.seconds = field_in(state, "seconds", NonNegative)
            if done > objective.iterations:
                raise FieldError(f"{objective.counter} is beyond the end of the training")
            check_alike(objective.state(), state)
            objective.load_state(state)
            self.iteration = done
        except (DiffLensError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DiffLensError(
                f"{path} is damaged, or of another training: {reason(error)}; start again in another folder"
            ) from error

    def train(self, on_look: Callable[[Look], object] = lambda _: None) -> float:
        """Train to the end or until the time is up; return the seconds of training.

        Args:
            on_look: called at every look, after the log is written and before the checkpoint.

        Raises:
            DiffLensError: loss or weights are no longer finite; the last checkpoint is from before.
        """
        objective, total = self.objective, self.objective.iterations
        began, earlier, looked = time.monotonic(), self.seconds, time.monotonic()
        losses: list[Tensor] = []
        with progress_bar(self.process.is_main_process) as bar:
            task = bar.add_task(self.title, total=total, completed=self.iteration, note="")
            batches = objective.batches(self.iteration)
            while self.iteration < total:
                losses.append(objective.step(next(batches)))
                self.iteration += 1
                bar.advance(task)
                within = self.iteration % objective.epoch_iterations
                if within and within % self.look_every and self.iteration < total:
                    continue
                # look: wait for the device, and stop if something is not finite
                recent = self.process.reduce(torch.stack(losses).float(), "mean").cpu()
                recent = recent.reshape(len(losses), -1)
                self._check(recent)
                losses.clear()
                now = time.monotonic()
                self.seconds = earlier + now - began
                rate = len(recent) * objective.batch_size / (now - looked)
                look = Look(self.iteration, recent, rate, self.seconds)
                # log
                where = objective.where(self.iteration)
                bar.update(task, note=f"loss {look.loss:.4f} {where}, {rate:,.1f} images/s")
                record = objective.record(look)
                if self.run and record is not None:
                    self.run.log(record)
                on_look(look)
                # keep, and stop if the time is up
                if not self._keep(time.monotonic() - began):
                    break
                looked = time.monotonic()
        objective.finish()
        return self.seconds

    def _check(self, losses: Tensor) -> None:
        """Raise DiffLensError if a loss or a weight is not finite."""
        bad = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
        weights = [weight for weight in self.objective.weights() if weight.is_floating_point()]
        if not bad and (not weights or torch.stack(torch._foreach_norm(weights)).sum().isfinite()):
            return
        at = self.iteration - len(losses) + 1 + bad[0] if bad else self.iteration
        what = "loss is" if bad else "weights are"
        problem = f"the {what} no longer finite {self.objective.where(at)}: {self.objective.remedy}"
        if self.run:
            kept = self.run.checkpoint_path
            known = "the last good checkpoint is" if kept.exists() else "there is no checkpoint yet at"
            problem += f"; {known} {kept}"
        raise DiffLensError(problem)

    def _keep(self, sitting: float) -> bool:
        """Write a checkpoint if one is due; False if the time is up, `sitting` seconds after the start."""
        objective, late = self.objective, sitting > self.max_seconds
        due = late or self.seconds - self._saved >= self.checkpoint_seconds
        # by the clock of one process
        late, due = broadcast_object_list([late, due or self.iteration == objective.iterations])
        if due and self.run:
            self._saved = self.seconds
            count = self.iteration // objective.counted
            self.run.save_checkpoint({**objective.state(), objective.counter: count, "seconds": self.seconds})
        return not late
