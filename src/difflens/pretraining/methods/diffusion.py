"""Denoising diffusion (Ho et al., 2020): a U-Net learns to remove noise from images; its weights are
averaged."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.unet import UNetBackbone
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.pretraining import networks
from difflens.pretraining.export import Card, write_pipeline
from difflens.pretraining.gradients import Gradients
from difflens.pretraining.initial import load_initial
from difflens.pretraining.loss import DiffusionLoss
from difflens.pretraining.methods.base import PretrainingMethod
from difflens.processes.schedulers import process_of
from difflens.processes.variance_preserving import VariancePreserving
from difflens.ranges import Natural
from difflens.run.directory import checkpoint_of
from difflens.run.reading import checked, field_in
from difflens.run.text import markdown_code
from difflens.training.objectives import Look
from difflens.training.optimisers import ParameterGroup, epoch_seed, make_optimizer

_UNTRAINED = 1.0, 1.0
"""The running mean of the loss and its lowest value at the start: the loss of a network that predicts zeros
for the noise, which has variance 1. Checkpoints of earlier versions have no other."""
_HORIZON = 5_000
"""Images of the running mean of the loss. The loss of an image differs by two orders of magnitude with t."""
_COLLAPSE = {"epsilon": 4.0, "v_prediction": 2.0}
"""A training has collapsed whose running mean is so many times its lowest one, by prediction. A network whose
residual stream explodes predicts zeros from then on: of the noise, a loss of 0.04 became 1; of v, which is
harder to predict, 0.23 would become 0.59."""


class DiffusionMethod(PretrainingMethod):
    """A U-Net trained with `DiffusionLoss`; the running average of its weights is saved.

    Raises:
        DiffLensError: the loss rose as it does when a training collapses; the learning rate is too high.
    """

    config: PretrainConfig

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator):
        super().__init__(config, images, process)
        self.unet = networks.build_unet(config).to(self.device)
        self.channels, self.side = int(self.unet.config.in_channels), int(self.unet.config.sample_size)
        variance = {"variance_type": "learned_range"} if config.learned_variance else {}
        schedule = process_of(
            {"beta_schedule": config.schedule, "prediction_type": config.prediction, **variance}
        )
        assert isinstance(schedule, VariancePreserving), "beta schedules are variance preserving"
        self.schedule = schedule
        if config.init_from is not None:
            # the checkpoint of a resumed run has weights and number
            resumed = config.resume and checkpoint_of(config.out).exists()
            self.images_before = None if resumed else load_initial(config.init_from, self.unet, schedule)
        self.ema = [parameter.detach().clone() for parameter in self.unet.parameters()]
        group = ParameterGroup(
            self.unet.parameters(), given(config.learning_rate), given(config.weight_decay)
        )
        self.optimizer = make_optimizer("adamw", group)
        self.rates = self.make_rates(self.optimizer)
        loss = DiffusionLoss(
            self.schedule,
            given(config.prediction),
            given(config.learned_variance),
            config.min_snr_gamma,
            self.device,
        )
        self.description = loss.description
        self.mean_loss = _UNTRAINED
        self.gradients = Gradients(
            self.unet,
            loss,
            process,
            self.precision,
            config.accumulate,
            config.checkpoint_activations,
            config.compile,
            config.seed,
        )

    def facts(self) -> dict[str, str]:
        """Return the row on the weights that the training started from."""
        initial = self.config.init_from
        if initial is None:
            return {}
        before = self.images_before
        seen = "an unknown number of images" if before is None else counted(before, "image")
        return {"initial weights": f"{markdown_code(initial)}, which had seen {seen}"}

    def card(self) -> Card:
        return Card(
            title="Unconditional diffusion U-Net",
            introduction="Pre-trained by difflens, without labels. "
            f"{counted(self.unet.num_parameters(), 'parameter')}, averaged weights (EMA), float16.",
            library="diffusers",
            tags=("unconditional-image-generation", "difflens"),
            samples="DDIM, 50 steps",
        )

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.draw = torch.tensor(epoch + 1, device=self.device)
        generator = torch.Generator().manual_seed(epoch_seed(self.config.seed, epoch))
        t = torch.randint(self.schedule.num_steps, (len(self.images),), generator=generator)
        self.t = t.to(self.device)

    def step(self, batch: Batch) -> Tensor:
        t = self.t[batch.rows.to(self.device)]
        loss = self.gradients(batch.images, batch.index, t, self.draw).clone()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.unet.parameters()], 1 - self.ema_decay())
        return loss

    def ema_decay(self) -> float:
        """Return the decay of the average at the present step.

        Random weights are forgotten sooner than others. Of trained ones, exp(-10) remains at the end: the
        average of a short training would else be that of the start.
        """
        steps = self.rates.last_epoch
        trained = self.config.init_from is not None
        most = max(0.0, 1 - 10 / self.iterations) if trained else (1 + steps) / (10 + steps)
        return min(given(self.config.ema_decay), most)

    def record(self, look: Look) -> dict[str, Any] | None:
        share = 1 - math.exp(-len(look.losses) * self.batch_size / _HORIZON)
        before, lowest = self.mean_loss
        mean = before + share * (look.loss - before)
        self.mean_loss = mean, min(lowest, mean)
        if mean > _COLLAPSE[given(self.config.prediction)] * lowest:
            raise DiffLensError(
                f"the training has collapsed {self.where(look.iteration)}: the mean loss of the last "
                f"{_HORIZON:,} images rose from {lowest:.3g} to {mean:.3g}; start again in "
                "another folder with a lower --learning-rate"
            )
        return super().record(look)

    def weights(self) -> list[Tensor]:
        return self.ema

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, "optimizer": self.optimizer, "rates": self.rates}

    def state(self) -> dict[str, Any]:
        state = super().state() | {"ema": self.ema}
        if self.mean_loss != _UNTRAINED:  # a new training does not ask earlier checkpoints for it
            state["mean_loss"] = self.mean_loss
        # earlier versions have no such name in their checkpoints
        return state if self.config.init_from is None else state | {"images_before": self.images_before}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        for average, stored in zip(self.ema, state["ema"], strict=True):
            average.copy_(stored)
        self.mean_loss = checked(tuple[float, float], state.get("mean_loss", _UNTRAINED), "mean_loss")
        if self.config.init_from is not None:
            self.images_before = field_in(state, "images_before", Natural | None)

    def backbone(self) -> UNetBackbone:
        averaged = type(self.unet).from_config(self.unet.config)
        names = (name for name, _ in self.unet.named_parameters())
        saved = (value.cpu().half() for value in self.ema)
        averaged.load_state_dict(dict(zip(names, saved, strict=True)))
        return UNetBackbone(averaged, self.schedule, "pre-trained").to(self.device)

    def write(self, folder: Path, backbone: UNetBackbone) -> None:
        write_pipeline(folder, backbone.unet, self.schedule)
