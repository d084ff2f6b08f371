"""Pre-training: the loop around what is learnt (`learners`), by diffusion or by a method to compare it with.

Images seen and all that is drawn for them are functions of (seed, epoch, image), and the images of a step do not depend
on the number of processes. So a run that is stopped and resumed sees exactly what an uninterrupted one sees.
"""

import math
import time
from pathlib import Path
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.progress import Progress, TaskID
from torch import Tensor

from difflens.configs.command_line import shown_command
from difflens.configs.options import given, recorded, resolve
from difflens.configs.pretrain import PretrainConfig
from difflens.data.load import load_data, load_unlabelled
from difflens.data.loader import epoch_order, iterate
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.generation.grid import image_grid
from difflens.generation.samplers import sample
from difflens.pretraining.export import write_card
from difflens.pretraining.methods.make import make_learner
from difflens.results.pretrain import PretrainResult
from difflens.run.board import Board
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator

__all__ = ["PretrainConfig", "pretrain"]


# Steps between looks at the loss. Each waits for the device, and only then is a checkpoint written or the run stopped.
LOOK_EVERY = 50

# the progress bar's only task
_BAR = TaskID(0)


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Run `config` and write a backbone, with diffusion one in diffusers format.

    Raises:
        DiffLensError: no images or no labels for them, images the network cannot halve, a missing package, a batch that
            processes and micro-batches do not divide, a folder that holds something else, too little GPU memory, or a
            loss that is no longer finite.
    """
    asked, config = config, resolve(config)
    images = _images(config).first(config.limit)
    process = accelerator(config.device)
    parts = process.num_processes * config.accumulate
    if given(config.batch_size) % parts:
        raise DiffLensError(
            f"batch-size {config.batch_size} is not a multiple of {parts}: {process.num_processes} processes times "
            f"{config.accumulate} micro-batches (--accumulate)"
        )
    settings = recorded(config)
    run = RunDirectory(config.out, "pretrain", settings, config.resume, process)
    with run.working():
        try:
            command = shown_command(asked)
            return PretrainResult(path=_Trainer(config, images, run, process, command).train())
        except torch.OutOfMemoryError as error:
            help = (
                "--accumulate cuts it into micro-batches, --checkpoint-activations keeps less of each"
                if config.method == "diffusion"
                else "lower --batch-size"
            )
            raise DiffLensError(f"the GPU has too little memory for this batch: {help}") from error


def _images(config: PretrainConfig) -> ImageSplit:
    """What to train on: labels come with it for supervised training alone, and the test split never does."""
    if config.method != "supervised":
        return load_unlabelled(config.data)
    return load_data(config.data).train


class _Trainer:
    """A run from its start or its last checkpoint."""

    def __init__(
        self,
        config: PretrainConfig,
        images: ImageSplit,
        run: RunDirectory,
        process: Accelerator,
        command: str,
    ):
        self.config, self.images, self.run, self.process = config, images, run, process
        self.command = command
        self.device = process.device
        self.batch_size = given(config.batch_size)
        self.steps_per_epoch = math.ceil(len(images) / self.batch_size)
        self.total_steps = given(config.epochs) * self.steps_per_epoch
        torch.manual_seed(config.seed)
        self.learner = make_learner(config, images, process, self.total_steps)
        self.epoch = self.step = 0
        self.losses: list[float] = []
        """Of this epoch's steps up to the last look, over all processes."""
        self.unseen: list[Tensor] = []
        """Of the steps since then, of this process, on the device."""
        self.seconds = self.kept_at = 0.0
        """Of training in all sittings together, up to the last look and up to the last checkpoint."""

    def train(self) -> Path:
        self._restore()
        self.started = self.looked_at = time.monotonic()
        self.earlier = self.seconds
        self.board = Board(self.run.path / "tensorboard", self.step, self.process.is_main_process)
        try:
            with progress_bar(self.process.is_main_process) as bar:
                bar.add_task("pre-training", total=self.total_steps, completed=self.step, note="")
                while self.step < self.total_steps and self._epoch(bar):
                    pass
            return self._save("model")
        finally:
            self.board.close()

    def _epoch(self, bar: Progress) -> bool:
        """What is left of an epoch; False if the time was up, perhaps before its end."""
        config, process = self.config, self.process
        order = epoch_order(len(self.images), config.seed, self.epoch)
        # whole batches only: the order wraps around, and one compiled graph serves every step
        rows = order[torch.arange(self.steps_per_epoch * self.batch_size) % len(order)]
        rows = rows[len(self.losses) * self.batch_size :][process.process_index :: process.num_processes]
        self.learner.start_epoch(self.epoch)
        began, before = time.monotonic(), len(self.losses)
        for batch in iterate(
            self.images, channels=self.learner.channels, side=self.learner.side,
            batch_size=self.batch_size // process.num_processes, rows=rows,
            augment=given(config.augment), seed=config.seed, epoch=self.epoch, workers=config.workers,
            device=self.device,
        ):  # fmt: skip
            self.unseen.append(self.learner.step(batch))
            self.step += 1
            bar.advance(_BAR)
            done = len(self.losses) + len(self.unseen)
            if done % LOOK_EVERY and done < self.steps_per_epoch:
                continue
            loss, rate = self._look()
            note = f"epoch {self.epoch + 1}/{config.epochs}, loss {loss:.4f}, {rate:,.1f} images/s"
            bar.update(_BAR, note=note)
            if done == self.steps_per_epoch:
                images = (done - before) * self.batch_size
                self._end_epoch(images / (time.monotonic() - began))
            if not self._keep():
                return False
            self.looked_at = time.monotonic()
        return True

    def _look(self) -> tuple[float, float]:
        """Wait for the device and check what came; the mean loss and the images a second since the last look."""
        losses: list[float] = self.process.reduce(torch.stack(self.unseen), "mean").tolist()
        first = self.step - len(losses) + 1
        bad = [step for step, loss in enumerate(losses, first) if not math.isfinite(loss)]
        if bad or not torch.stack(torch._foreach_norm(self.learner.saved_weights())).sum().isfinite():
            kept = self.run.checkpoint_path
            good = f"the last good checkpoint is {kept}" if kept.exists() else f"there is no {kept} yet"
            raise DiffLensError(
                f"the {'loss is' if bad else 'weights are'} no longer finite in epoch {self.epoch + 1} (step "
                f"{bad[0] if bad else self.step}); {good}. Lower --learning-rate, or use --precision float32"
            )
        self.losses += losses
        self.unseen.clear()
        now = time.monotonic()
        self.seconds = self.earlier + now - self.started
        loss = fmean(losses)
        rate = len(losses) * self.batch_size / (now - self.looked_at)
        self.board.scalars(self.step, loss=loss, learning_rate=self._rate(), images_per_second=rate)
        return loss, rate

    def _end_epoch(self, rate: float) -> None:
        self.epoch += 1
        self.run.log({
            "epoch": self.epoch, "step": self.step, "loss": fmean(self.losses), "images_per_second": round(rate, 1),
            "learning_rate": self._rate(), "seconds": round(self.seconds, 1),
        })  # fmt: skip
        self.losses = []
        every = self.config.snapshot_epochs
        if every and self.epoch % every == 0:
            self._save(f"snapshots/epoch-{self.epoch:04d}")

    def _keep(self) -> bool:
        """Write a checkpoint if one is due; False if the time is up."""
        limit = self.config.max_minutes
        late = limit is not None and time.monotonic() - self.started > 60 * limit
        due = self.seconds - self.kept_at >= 60 * given(self.config.checkpoint_minutes)
        # by the clock of one process
        late, due = broadcast_object_list([late, due or late or self.step == self.total_steps])
        if due:
            self.kept_at = self.seconds
            self.run.save_checkpoint({
                **self.learner.state(), "epoch": self.epoch, "step": self.step, "losses": self.losses,
                "seconds": self.seconds,
            })  # fmt: skip
        return not late

    def _restore(self) -> None:
        state = self.run.load_checkpoint() if self.config.resume else None
        if state is not None:
            self.learner.load_state(state)
            self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
            self.seconds = self.kept_at = state["seconds"]
        if len(set(gather_object([self.step]))) > 1:
            raise DiffLensError(
                f"the machines do not see the same checkpoint: {self.run.path} must be a folder that they share"
            )

    def _save(self, name: str) -> Path:
        """What has been learnt, as a folder that `load_backbone` reads."""
        learner = self.learner

        def write(folder: Path) -> None:
            backbone = learner.backbone()
            if backbone.generates:
                # large images one by one, as the training's memory is still taken
                together = math.ceil(64 * (32 / backbone.image_size) ** 2)
                samples = image_grid(sample(backbone, 36, seed=self.config.seed, batch_size=together))
                self.board.picture(self.step, "samples", samples)
                samples.save(folder / "samples.png")
            learner.write(folder, backbone)
            shape = learner.channels, learner.side
            write_card(folder, learner.card(), shape, self.run.read_log(), self._facts())

        return self.run.write_folder(name, write)

    def _rate(self) -> float:
        return float(self.learner.rates.get_last_lr()[0])

    def _facts(self) -> dict[str, str]:
        """The model card's table."""
        config = self.config
        hardware = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        return {
            "command": f"`{self.command}`",
            "images": f"{len(self.images):,}",
            "epochs": f"{self.epoch} of {config.epochs}",
            "steps": f"{self.step:,}, batch {config.batch_size}",
            "images seen": f"{self.step * self.batch_size:,}",
            "minutes of training": f"{self.seconds / 60:.1f}",
            **self.learner.facts(),
            "hardware": f"{hardware} x {self.process.num_processes}, {self.learner.precision}",
            "loss": self.learner.description,
        }
