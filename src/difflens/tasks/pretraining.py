"""Unconditional pre-training: a U-Net that learns to take noise out of images, and nothing else.

Images seen, noise steps, noise and flips are functions of (seed, epoch, image), and the images of a step do not depend
on the number of processes. So a run that is stopped and resumed sees exactly what an uninterrupted one sees.
"""

import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import UNet2DModel
from rich.progress import Progress, TaskID
from torch import Tensor

from difflens import presets
from difflens.backbones.unet import UNetBackbone
from difflens.data.loader import epoch_order, iterate
from difflens.data.sources import load_unlabelled
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.noise import NoiseSchedule
from difflens.runs import RunDirectory, settings_of, shown_command
from difflens.sampling import sample
from difflens.tasks.board import Board
from difflens.tasks.diffusion_loss import DiffusionLoss
from difflens.tasks.generation import image_grid
from difflens.tasks.gradients import Gradients
from difflens.tasks.pretrain_config import PretrainConfig
from difflens.tasks.pretrained_folder import write_pretrained
from difflens.training import (
    ParameterGroup,
    Precision,
    accelerator,
    epoch_seed,
    make_optimizer,
    make_schedule,
    progress_bar,
)  # fmt: skip

__all__ = ["PretrainConfig", "pretrain"]

# What may differ between a run and its continuation.
_FREE = (
    "resume", "device", "workers", "accumulate", "checkpoint_activations", "compile", "max_minutes",
    "checkpoint_minutes", "snapshot_epochs", "out",
)  # fmt: skip

# Steps between looks at the loss. Each waits for the device, and only then is a checkpoint written or the run stopped.
LOOK_EVERY = 50

# the progress bar's only task
_BAR = TaskID(0)

T = TypeVar("T")


def pretrain(config: PretrainConfig) -> Path:
    """Run `config`; returns the diffusers-format folder of the averaged weights.

    Raises:
        DiffLensError: no images, images the U-Net cannot halve, a batch that processes and micro-batches do not divide,
            a folder that holds something else, too little GPU memory, or a loss that is no longer finite.
    """
    asked, config = config, config.resolved()
    network = presets.unet_config(
        presets.PRETRAIN[config.preset]["unet"], _given(config.learned_variance), config.image_size
    )
    images = load_unlabelled(config.data).first(config.limit)
    process = accelerator(config.device)
    parts = process.num_processes * config.accumulate
    if _given(config.batch_size) % parts:
        raise DiffLensError(
            f"batch-size {config.batch_size} is not a multiple of {parts}: {process.num_processes} processes times "
            f"{config.accumulate} micro-batches (--accumulate)"
        )
    settings = settings_of(config, _FREE)
    run = RunDirectory(config.out, "pretrain", settings, config.resume, process)
    with run.working():
        try:
            command = shown_command("pretrain", asked)
            return _Trainer(config, network, images, run, process, command).train()
        except torch.OutOfMemoryError as error:
            raise DiffLensError(
                "the GPU has too little memory for this batch: --accumulate cuts it into micro-batches, "
                "--checkpoint-activations keeps less of each"
            ) from error


class _Trainer:
    """A run from its start or its last checkpoint."""

    def __init__(
        self,
        config: PretrainConfig,
        network: dict[str, Any],
        images: ImageSplit,
        run: RunDirectory,
        process: Accelerator,
        command: str,
    ):
        self.config, self.images, self.run, self.process = config, images, run, process
        self.command = command
        self.device = process.device
        cuda = self.device.type == "cuda"
        self.precision: Precision = config.precision or ("bfloat16" if cuda else "float32")
        torch.manual_seed(config.seed)
        self.unet = UNet2DModel(**network).to(self.device)
        self.ema = [parameter.detach().clone() for parameter in self.unet.parameters()]
        variance = {"variance_type": "learned_range"} if config.learned_variance else {}
        self.schedule = NoiseSchedule.from_config(
            {"beta_schedule": config.schedule, "prediction_type": config.prediction, **variance}
        )
        self.batch_size = _given(config.batch_size)
        self.steps_per_epoch = math.ceil(len(images) / self.batch_size)
        self.total_steps = _given(config.epochs) * self.steps_per_epoch
        group = ParameterGroup(
            self.unet.parameters(), _given(config.learning_rate), _given(config.weight_decay)
        )
        self.optimizer = make_optimizer("adamw", group)
        warmup = min(config.warmup_steps, self.total_steps // 10)
        self.rates = make_schedule(self.optimizer, "cosine", self.total_steps, warmup)
        self.loss = DiffusionLoss(
            self.schedule, _given(config.prediction), _given(config.learned_variance), config.min_snr_gamma,
            self.device,
        )  # fmt: skip
        self.gradients = Gradients(
            self.unet, self.loss, process, self.precision, config.accumulate, config.checkpoint_activations,
            config.compile, config.seed,
        )  # fmt: skip
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
        draw = torch.tensor(self.epoch + 1, device=self.device)
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, self.epoch))
        t = torch.randint(self.schedule.num_steps, (len(self.images),), generator=generator).to(self.device)
        began, before = time.monotonic(), len(self.losses)
        for batch in iterate(
            self.images, channels=int(self.unet.config.in_channels), side=int(self.unet.config.sample_size),
            batch_size=self.batch_size // process.num_processes, rows=rows,
            augment="flip" if config.flip else "none", seed=config.seed, epoch=self.epoch, workers=config.workers,
            device=self.device,
        ):  # fmt: skip
            self._step(batch.images, batch.index, t[batch.rows.to(self.device)], draw)
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

    def _step(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> None:
        self.unseen.append(self.gradients(images, index, t, draw).clone())
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        self.step += 1
        decay = min(_given(self.config.ema_decay), (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.unet.parameters()], 1 - decay)

    def _look(self) -> tuple[float, float]:
        """Wait for the device and check what came; the mean loss and the images a second since the last look."""
        losses: list[float] = self.process.reduce(torch.stack(self.unseen), "mean").tolist()
        first = self.step - len(losses) + 1
        bad = [step for step, loss in enumerate(losses, first) if not math.isfinite(loss)]
        if bad or not torch.stack(torch._foreach_norm(self.ema)).sum().isfinite():
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
        self.board.scalars(
            self.step, loss=loss, learning_rate=float(self.rates.get_last_lr()[0]), images_per_second=rate
        )
        return loss, rate

    def _end_epoch(self, rate: float) -> None:
        self.epoch += 1
        self.run.log({
            "epoch": self.epoch, "step": self.step, "loss": fmean(self.losses), "images_per_second": round(rate, 1),
            "learning_rate": self.rates.get_last_lr()[0], "seconds": round(self.seconds, 1),
        })  # fmt: skip
        self.losses = []
        every = self.config.snapshot_epochs
        if every and self.epoch % every == 0:
            self._save(f"snapshots/epoch-{self.epoch:04d}")

    def _keep(self) -> bool:
        """Write a checkpoint if one is due; False if the time is up."""
        limit = self.config.max_minutes
        late = limit is not None and time.monotonic() - self.started > 60 * limit
        due = self.seconds - self.kept_at >= 60 * _given(self.config.checkpoint_minutes)
        # by the clock of one process
        late, due = broadcast_object_list([late, due or late or self.step == self.total_steps])
        if due:
            self.kept_at = self.seconds
            self.run.save_checkpoint({
                "unet": self.unet.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict(),
                "rates": self.rates.state_dict(), "epoch": self.epoch, "step": self.step, "losses": self.losses,
                "seconds": self.seconds,
            })  # fmt: skip
        return not late

    def _restore(self) -> None:
        state = self.run.load_checkpoint() if self.config.resume else None
        if state is not None:
            self.unet.load_state_dict(state["unet"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.rates.load_state_dict(state["rates"])
            for mine, stored in zip(self.ema, state["ema"], strict=True):
                mine.copy_(stored)
            self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
            self.seconds = self.kept_at = state["seconds"]
        if len(set(gather_object([self.step]))) > 1:
            raise DiffLensError(
                f"the machines do not see the same checkpoint: {self.run.path} must be a folder that they share"
            )

    def _save(self, name: str) -> Path:
        """The averaged weights as a diffusers folder."""

        def write(folder: Path) -> None:
            averaged = UNet2DModel.from_config(self.unet.config)
            names = (name for name, _ in self.unet.named_parameters())
            averaged.load_state_dict({name: value.cpu() for name, value in zip(names, self.ema, strict=True)})
            backbone = UNetBackbone(averaged, self.schedule, "pre-trained").to(self.device)
            # large images one by one, as the training's memory is still taken
            together = math.ceil(64 * (32 / backbone.image_size) ** 2)
            drawn = sample(backbone, 36, steps=50, seed=self.config.seed, batch_size=together)
            samples = image_grid(drawn)
            self.board.picture(self.step, "samples", samples)
            write_pretrained(folder, averaged, self.schedule, samples, self.run.read_log(), self._facts())

        return self.run.write_folder(name, write)

    def _facts(self) -> dict[str, str]:
        """The model card's table."""
        config = self.config
        hardware = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        return {
            "command": f"`{self.command}`",
            "images": f"{len(self.images):,}",
            "epochs": f"{self.epoch} of {config.epochs}",
            "steps": f"{self.step:,}, batch {config.batch_size}",
            "hardware": f"{hardware} x {self.process.num_processes}, {self.seconds / 60:.0f} minutes, {self.precision}",
            "loss": self.loss.description,
        }


def _given(value: T | None) -> T:
    assert value is not None, "the preset fills this in"
    return value
