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
from difflens.run.signals import HeldSignals, Stopped
from difflens.training.objectives import Look, Objective, check_alike

CLOCK_SECONDS = 5.0
"""The loop looks at the clock about this often, between looks at the loss."""


class TrainingLoop:
    """A training run, from the start or from the last checkpoint of its run directory.

    The loop keeps checkpoints at looks. If the objective can be kept at any iteration, it also keeps them
    between looks: by the clock, and when SIGINT or SIGTERM stops the run.

    Args:
        objective: the objective to train; the constructor loads its state from the checkpoint.
        process: this process.
        run: the run directory for log and checkpoints; None: no log and no checkpoints.
        title: the title of the progress bar.
        look_every: iterations between looks within an epoch; each look waits for the device. None: an epoch.
        checkpoint_seconds: a checkpoint is written if the last one is this old, and at the end.
        max_seconds: stop when this sitting has lasted so many seconds; those before a resumption do not
            count.

    Attributes:
        iteration: the number of iterations done.
        seconds: the seconds of training, with those before each resumption.

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
        self._recent = torch.empty(0)  # losses since the last look
        state = run.load_checkpoint() if run else None
        if run and state is not None:
            self._restore(state, run.checkpoint_path)
        if run:
            run.cut_log(state["log_lines"] if state else 0)
            run.trackers.begin(self.iteration)
        if run and len(set(gather_object([self.iteration]))) > 1:
            raise DiffLensError(
                f"the machines do not see the same checkpoint: {run.path} must be a folder that they share"
            )
        self._saved = self.seconds  # at the last checkpoint
        # the iteration at which all processes look at the clock
        self._clock_at = self.iteration + 1 if run and objective.counted == 1 else math.inf

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint; raise DiffLensError if it is not one of this training."""
        objective = self.objective
        try:
            done = field_in(state, objective.counter, Natural) * objective.counted
            self.seconds = field_in(state, "seconds", NonNegative)
            if done > objective.iterations:
                raise FieldError(f"{objective.counter} is beyond the end of the training")
            self._recent = state.get("recent", self._recent)
            if not isinstance(self._recent, Tensor):
                raise FieldError("recent is no tensor")
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
            Stopped: SIGINT or SIGTERM came; the last checkpoint is of this moment.
        """
        objective, total = self.objective, self.objective.iterations
        began, earlier = time.monotonic(), self.seconds
        looked, waited = (began, self.iteration), (began, self.iteration)
        losses: list[Tensor] = []
        with (
            progress_bar(self.process.is_main_process) as bar,
            HeldSignals(self._clock_at < math.inf) as held,
        ):
            task = bar.add_task(self.title, total=total, completed=self.iteration, note="")
            batches = objective.batches(self.iteration)
            while self.iteration < total:
                losses.append(objective.step(next(batches)))
                self.iteration += 1
                bar.advance(task)
                within = self.iteration % objective.epoch_iterations
                looks = not within or not within % self.look_every or self.iteration == total
                stops = held.received and self.process.num_processes == 1
                if not (looks or stops or self.iteration >= self._clock_at):
                    continue
                # wait for the device, and stop if something is not finite
                recent = self.process.reduce(torch.stack(losses).float(), "mean").cpu()
                recent = recent.reshape(len(losses), -1)
                self._check(recent)
                self._recent = torch.cat([self._recent.reshape(-1, recent.shape[1]), recent])
                losses.clear()
                now = time.monotonic()
                self.seconds = earlier + now - began
                if looks:
                    rate = (self.iteration - looked[1]) * objective.batch_size / (now - looked[0])
                    look = Look(self.iteration, self._recent, rate, self.seconds)
                    where = objective.where(self.iteration).removeprefix("in ")
                    bar.update(task, note=f"{where}, loss {look.loss:.4f}, {rate:,.1f} images/s")
                    record = objective.record(look)
                    if self.run:
                        if record is not None:
                            self.run.log(record)
                        self.run.trackers.log(look.iteration, objective.curves(look, record))
                    on_look(look)
                    self._recent = torch.empty(0)
                    self.seconds = earlier + time.monotonic() - began  # with the probe and snapshots
                # keep, and stop if the time is up or a signal came
                pace = (now - waited[0]) / (self.iteration - waited[1])
                goes_on = self._keep(time.monotonic() - began, pace, held.received)
                waited = time.monotonic(), self.iteration
                looked = waited if looks else looked
                if not goes_on:
                    break
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

    def _keep(self, sitting: float, pace: float, received: int) -> bool:
        """Write a checkpoint if one is due; False if the time is up.

        Args:
            sitting: seconds since the start.
            pace: seconds of an iteration.
            received: the signal that came to this process, or 0.

        Raises:
            Stopped: a signal came to any process.
        """
        objective, late = self.objective, sitting > self.max_seconds
        due = late or self.seconds - self._saved >= self.checkpoint_seconds
        next_clock = self._clock_at
        if next_clock < math.inf:
            next_clock = self.iteration + max(1, int(CLOCK_SECONDS / max(pace, 1e-6)))
            received = max(gather_object([received]))
        # by the clock of one process
        late, due, self._clock_at = broadcast_object_list(
            [late, due or self.iteration == objective.iterations, next_clock]
        )
        if (due or received) and self.run:
            self._saved = self.seconds
            count = self.iteration // objective.counted
            state = {objective.counter: count, "seconds": self.seconds, "recent": self._recent}
            self.run.save_checkpoint({**objective.state(), **state})
        if received:
            where = objective.where(self.iteration)
            raise Stopped(received, f"stopped {where}, with a checkpoint; --resume continues")
        return not late
