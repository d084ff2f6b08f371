"""Unconditional pre-training: a U-Net that predicts the noise in its input, and nothing else.

Images seen, noise steps, noise and flips are functions of (seed, epoch, image), so a run that is stopped and
resumed sees exactly what an uninterrupted one sees.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from difflens import presets
from difflens.backbones.unet import UNetBackbone
from difflens.data.images import to_float
from difflens.data.loader import epoch_order, iterate
from difflens.data.sources import load_unlabelled
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, listing, require
from difflens.noise import NoiseSchedule, ScheduleName, seeded_noise
from difflens.runs import RunDirectory, settings_of, shown_command
from difflens.tasks.generation import image_grid, sample
from difflens.training import (
    ParameterGroup,
    Precision,
    accelerator,
    epoch_seed,
    make_optimizer,
    make_schedule,
    progress_bar,
)  # fmt: skip


@dataclass(frozen=True)
class PretrainConfig:
    """Train an unconditional diffusion U-Net on images without labels.

    A field left at None takes the preset's value.
    """

    data: str
    """What to train on: as for `probe`, or a folder of images in any arrangement. Labels are not used."""
    out: Path
    """Run directory; `model/` in it becomes a diffusers-format folder."""
    preset: str = "fashion-32"
    """A recipe of `difflens.presets.PRETRAIN`."""
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step, over all processes."""
    learning_rate: float | None = None
    """Peak of AdamW's learning rate; warmed up linearly, then cosine to zero."""
    flip: bool | None = None
    """Random horizontal flips."""
    warmup_steps: int = 500
    weight_decay: float = 0.01
    ema_decay: float = 0.9995
    """Decay per step of the averaged weights that are saved, float32."""
    schedule: ScheduleName = "linear"
    """Noise schedule of 1000 steps."""
    precision: Precision | None = None
    """Of the network's arithmetic; weights stay float32. None: bfloat16 on a GPU, float32 on the CPU."""
    compile: bool = False
    """torch.compile the training step: minutes of compiling for a faster step on a GPU."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    limit: int | None = None
    """Use the first so many images only."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    snapshot_epochs: int | None = None
    """Also keep the averaged weights every so many epochs, under `snapshots/`, and draw a sample grid."""
    checkpoint_minutes: float = 1.0
    """Write a checkpoint at the end of an epoch if the last one is this old."""
    max_minutes: float | None = None
    """Stop cleanly after so many minutes; --resume goes on."""
    seed: int = 0
    resume: bool = False

    def resolved(self) -> "PretrainConfig":
        """With every None that the preset knows filled in."""
        if self.preset not in presets.PRETRAIN:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets.PRETRAIN))}")
        require(
            epochs=(self.epochs, 1, None), batch_size=(self.batch_size, 1, None),
            learning_rate=(self.learning_rate, 0, None), warmup_steps=(self.warmup_steps, 0, None),
            weight_decay=(self.weight_decay, 0, None), ema_decay=(self.ema_decay, 0, 1), limit=(self.limit, 1, None),
            workers=(self.workers, 0, None), snapshot_epochs=(self.snapshot_epochs, 1, None),
            max_minutes=(self.max_minutes, 0, None), checkpoint_minutes=(self.checkpoint_minutes, 0, None),
            seed=(self.seed, 0, 2**31),
        )  # fmt: skip
        recipe = {"learning_rate": 2e-4, "flip": False, **presets.PRETRAIN[self.preset]}
        recipe.pop("unet")
        return replace(self, **{key: value for key, value in recipe.items() if getattr(self, key) is None})


T = TypeVar("T")

# What may differ between a run and its continuation.
_FREE = (
    "resume",
    "device",
    "workers",
    "compile",
    "max_minutes",
    "checkpoint_minutes",
    "snapshot_epochs",
    "out",
)


def pretrain(config: PretrainConfig) -> Path:
    """Run `config`; returns the diffusers-format folder of the averaged weights.

    Raises:
        DiffLensError: no images, a folder that holds something else, or a loss that is no longer finite.
    """
    config = config.resolved()
    images = load_unlabelled(config.data).first(config.limit)
    process = accelerator(config.device)
    settings = settings_of(config, _FREE)
    run = RunDirectory(config.out, "pretrain", settings, config.resume, process)
    with run.working():
        return _Trainer(config, images, run, process).train()


class _Trainer:
    def __init__(self, config: PretrainConfig, images: ImageSplit, run: RunDirectory, process: Accelerator):
        self.config, self.images, self.run, self.process = config, images, run, process
        self.device = process.device
        cuda = self.device.type == "cuda"
        self.precision: Precision = config.precision or ("bfloat16" if cuda else "float32")
        torch.manual_seed(config.seed)
        unet = UNet2DModel(**presets.unet_config(presets.PRETRAIN[config.preset]["unet"]))
        self.side, self.channels = int(unet.config.sample_size), int(unet.config.in_channels)
        self.schedule = NoiseSchedule.from_config({"beta_schedule": config.schedule})
        self.unet = unet.to(self.device)
        self.ema = [parameter.detach().clone() for parameter in self.unet.parameters()]
        self.batch_size = max(1, _given(config.batch_size) // process.num_processes)
        self.steps_per_epoch = math.ceil(math.ceil(len(images) / process.num_processes) / self.batch_size)
        group = ParameterGroup(self.unet.parameters(), _given(config.learning_rate), config.weight_decay)
        self.optimizer = make_optimizer("adamw", group)
        total = _given(config.epochs) * self.steps_per_epoch
        self.rates = make_schedule(self.optimizer, "cosine", total, min(config.warmup_steps, total // 10))
        self.model = process.prepare(self.unet)
        self.loss = torch.compile(self._loss, dynamic=False) if config.compile else self._loss
        alone = cuda and process.num_processes == 1
        self.gradients = _CapturedGradients(self._gradients) if alone else self._gradients
        # on the device, where a captured step can index them
        self.signal = self.schedule.alphas_cumprod.sqrt().float().to(self.device)
        self.noise = (1 - self.schedule.alphas_cumprod).sqrt().float().to(self.device)
        self.epoch = self.step = 0
        self.seconds = self.kept_at = 0.0

    def train(self) -> Path:
        self._restore()
        epochs = _given(self.config.epochs)
        started = time.monotonic()
        earlier = self.seconds
        with progress_bar(self.process.is_main_process) as bar:
            task = bar.add_task("pre-training", total=epochs, completed=self.epoch, note="")
            while self.epoch < epochs:
                begun = time.monotonic()
                loss = self._epoch()
                rate = len(self.images) / (time.monotonic() - begun)
                self.seconds = earlier + time.monotonic() - started
                self.run.log({
                    "epoch": self.epoch, "step": self.step, "loss": loss, "images_per_second": round(rate, 1),
                    "learning_rate": self.rates.get_last_lr()[0], "seconds": round(self.seconds, 1),
                })  # fmt: skip
                bar.update(task, advance=1, note=f"loss {loss:.4f}, {rate:.0f} images/s")
                late = self.config.max_minutes and time.monotonic() - started > 60 * self.config.max_minutes
                self._keep(last=bool(late) or self.epoch == epochs)
                if late:
                    break
        return self._save("model")

    def _epoch(self) -> float:
        config, process = self.config, self.process
        rows = epoch_order(
            len(self.images), config.seed, self.epoch, process.process_index, process.num_processes
        )
        # whole batches only: the order wraps around, and one compiled graph serves every step
        rows = rows[torch.arange(self.steps_per_epoch * self.batch_size) % len(rows)]
        draw = torch.tensor(self.epoch + 1, device=self.device)
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, self.epoch))
        steps = torch.randint(self.schedule.num_steps, (len(self.images),), generator=generator).to(
            self.device
        )
        total = torch.zeros((), device=self.device)
        for batch in iterate(
            self.images, channels=self.channels, side=self.side, batch_size=self.batch_size, rows=rows,
            augment="flip" if config.flip else "none", seed=config.seed, epoch=self.epoch,
            workers=config.workers, device=self.device,
        ):  # fmt: skip
            t = steps[batch.rows.to(self.device)]
            loss = self.gradients(batch.images, batch.index, t, draw)
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.step += 1
            decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.unet.parameters()], 1 - decay)
            total += loss
        mean = float(process.reduce(total, "mean")) / self.steps_per_epoch
        self.epoch += 1
        if not math.isfinite(mean):
            raise DiffLensError(
                f"the loss is no longer finite in epoch {self.epoch} (step {self.step}); the last good checkpoint "
                f"is {self.run.checkpoint_path}. Lower --learning-rate, or use --precision float32"
            )
        return mean

    def _gradients(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        """Sets the parameters' gradients; returns the loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, index, t, draw)
        self.process.backward(loss)
        return loss.detach()

    def _loss(self, images: Tensor, index: Tensor, t: Tensor, draw: Tensor) -> Tensor:
        x0 = to_float(images)
        noise = seeded_noise((self.channels, self.side, self.side), index, t, self.config.seed, draw)
        x_t = self.signal[t].view(-1, 1, 1, 1) * x0 + self.noise[t].view(-1, 1, 1, 1) * noise
        return nn.functional.mse_loss(self._predict(x_t, t).float(), noise)

    def _predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.precision == "float32":
            return self.model(x_t, t).sample
        # the whole network in the lower precision: autocast would take every normalisation to float32 and back.
        # Gradients pass through the cast to the float32 weights.
        dtype = getattr(torch, self.precision)
        cast = {name: parameter.to(dtype) for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, (x_t.to(dtype), t)).sample

    def _keep(self, last: bool) -> None:
        every = self.config.snapshot_epochs
        if every and self.epoch % every == 0:
            self._save(f"snapshots/epoch-{self.epoch:04d}")
        if not last and self.seconds - self.kept_at < 60 * self.config.checkpoint_minutes:
            return
        self.kept_at = self.seconds
        self.run.save_checkpoint({
            "unet": self.unet.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(), "epoch": self.epoch, "step": self.step, "seconds": self.seconds,
        })  # fmt: skip

    def _restore(self) -> None:
        state = self.run.load_checkpoint() if self.config.resume else None
        if state is None:
            return
        self.unet.load_state_dict(state["unet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        for mine, stored in zip(self.ema, state["ema"], strict=True):
            mine.copy_(stored)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.kept_at = self.seconds

    def _save(self, name: str) -> Path:
        """The averaged weights as a float16 diffusers folder, with a sample grid and a model card."""
        averaged = UNet2DModel.from_config(self.unet.config)
        state = dict(zip((name for name, _ in self.unet.named_parameters()), self.ema, strict=True))
        averaged.load_state_dict({key: value.cpu() for key, value in state.items()})
        schedule = DDPMScheduler(beta_schedule=self.config.schedule, clip_sample=True)
        log = self.run.read_log()

        def write(folder: Path) -> None:
            backbone = UNetBackbone(averaged, self.schedule, "pre-trained").to(self.device)
            image_grid(sample(backbone, 36, steps=50, seed=self.config.seed)).save(folder / "samples.png")
            half = averaged.cpu().half()
            DDPMPipeline(half, schedule).save_pretrained(folder)
            plot_loss(log, folder / "loss.png")
            (folder / "README.md").write_text(self._card(log))

        return self.run.write_folder(name, write)

    def _card(self, log: list[dict[str, Any]]) -> str:
        config = self.config
        hardware = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        parameters = sum(p.numel() for p in self.unet.parameters())
        command = shown_command("pretrain", config)
        return CARD.format(
            parameters=f"{parameters:,}", command=command, images=f"{len(self.images):,}",
            epochs=self.epoch, of=config.epochs, steps=f"{self.step:,}", batch=config.batch_size,
            hardware=f"{hardware} x {self.process.num_processes}", precision=self.precision,
            minutes=f"{self.seconds / 60:.0f}", torch=torch.__version__,
            loss=f"{log[-1]['loss']:.4f}" if log else "none", side=self.side, channels=self.channels,
        )  # fmt: skip


class _CapturedGradients:
    """A forward and backward pass of fixed shapes as one CUDA graph.

    A small network is bound by kernel launches otherwise. Replaying writes into the gradients of the capture.
    """

    def __init__(self, gradients: Callable[..., Tensor]):
        self.run = gradients
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None:
            self._capture(inputs)
        assert self.graph is not None
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # lets libraries choose their algorithms before the capture
            for _ in range(3):
                self.run(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.run(*self.inputs)


CARD = """\
---
library_name: diffusers
tags: [unconditional-image-generation, difflens]
---
# Unconditional diffusion U-Net, {channels}x{side}x{side}

Pre-trained by difflens to predict noise, without labels. {parameters} parameters, averaged weights (EMA), float16.

| | |
|---|---|
| command | `{command}` |
| images | {images} |
| epochs | {epochs} of {of} |
| steps | {steps}, batch {batch} |
| hardware | {hardware}, {minutes} minutes, {precision} |
| torch | {torch} |
| final loss (mean squared error of the noise) | {loss} |

![loss per epoch](loss.png)

Samples (DDIM, 50 steps, not selected):

![samples](samples.png)
"""


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Loss per epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in log], [line["loss"] for line in log])
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)


def _given(value: T | None) -> T:
    assert value is not None, "the preset fills this in"
    return value
