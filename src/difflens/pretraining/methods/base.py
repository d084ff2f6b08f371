"""The objective of any method of pre-training, and of those that train an encoder by one loss."""

import copy
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from difflens import presets
from difflens.backbones.base import Backbone
from difflens.backbones.encoder import EncoderBackbone, EncoderConfig
from difflens.choices import Precision
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.loader import Batch, epoch_order, iterate
from difflens.data.split import ImageSplit
from difflens.pretraining import networks
from difflens.pretraining.export import Card
from difflens.training.objectives import Look, Objective
from difflens.training.optimisers import ParameterGroup, make_optimizer, make_schedule


class PretrainingMethod(Objective):
    """The networks of one method, their optimisers, and a step of them.

    Whatever is random in a step is a function of (seed, epoch, image), so that neither a stop nor the number
    of processes changes it.

    Args:
        config: resolved.
        images: to train on.
        process: this one, of perhaps several.

    Attributes:
        description: of what is minimised.
        channels, side: of the images that it takes.
        epoch: the one under way, from 0.
        losses: of this epoch's steps up to the last look, over all processes.
    """

    description: str
    channels: int
    side: int
    remedy = "lower --learning-rate, or use --precision float32"
    counter = "step"

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator):
        self.config, self.images, self.process, self.device = config, images, process, process.device
        self.precision: Precision = config.precision or (
            "bfloat16" if self.device.type == "cuda" else "float32"
        )
        self.batch_size = given(config.batch_size)
        self.epoch_iterations = math.ceil(len(images) / self.batch_size)
        self.iterations = given(config.epochs) * self.epoch_iterations
        self.epoch = 0
        self.losses: list[float] = []

    def start_epoch(self, epoch: int) -> None:
        """Say to which epoch all steps from here on belong."""
        self.epoch = epoch

    def batches(self, start: int) -> Iterator[Batch]:
        config, process = self.config, self.process
        for epoch in itertools.count(start // self.epoch_iterations):
            done = start % self.epoch_iterations if epoch == start // self.epoch_iterations else 0
            order = epoch_order(len(self.images), config.seed, epoch)
            # whole batches only: the order wraps around, and one compiled graph serves every step
            rows = order[torch.arange(self.epoch_iterations * self.batch_size) % len(order)]
            rows = rows[done * self.batch_size :][process.process_index :: process.num_processes]
            self.start_epoch(epoch)
            self.began, self.first = time.monotonic(), epoch * self.epoch_iterations + done
            yield from iterate(
                self.images, channels=self.channels, side=self.side,
                batch_size=self.batch_size // process.num_processes, rows=rows,
                augment=given(config.augment), seed=config.seed, epoch=epoch, workers=config.workers,
                device=self.device,
            )  # fmt: skip

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """One step of every optimiser; the mean loss of this process's images, detached, ()."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Networks, optimisers and schedules: all that has a `state_dict`, by its name in a checkpoint."""

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()} | {"losses": self.losses}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.losses = state["losses"]

    def where(self, iteration: int) -> str:
        return f"in epoch {math.ceil(iteration / self.epoch_iterations)} (step {iteration})"

    def record(self, look: Look) -> dict[str, Any] | None:
        self.losses += look.losses.flatten().tolist()
        if look.iteration % self.epoch_iterations:
            return None
        loss, self.losses = fmean(self.losses), []
        rate = (look.iteration - self.first) * self.batch_size / (time.monotonic() - self.began)
        return {
            "epoch": look.iteration // self.epoch_iterations, "step": look.iteration, "loss": loss,
            "images_per_second": round(rate, 1), "learning_rate": self.learning_rate,
            "seconds": round(look.seconds, 1),
        }  # fmt: skip

    @abstractmethod
    def backbone(self) -> Backbone:
        """A frozen copy of what has been learnt, on the device."""

    @abstractmethod
    def write(self, folder: Path, backbone: Any) -> None:
        """Fill an existing folder with what `load_backbone` reads; `backbone` is `backbone()`'s, and may be
        changed."""

    @abstractmethod
    def card(self) -> Card:
        """What the model card says of it."""

    def facts(self) -> dict[str, str]:
        """Rows for the model card's table."""
        return {}

    def make_rates(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        warmup = min(self.config.warmup_steps, self.iterations // 10)
        return make_schedule(optimizer, "cosine", self.iterations, warmup)

    def autocast(self) -> torch.autocast:
        """Lower precision where it is wanted."""
        return torch.autocast(
            self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Those of several processes become their mean.

        By hand, since networks that are called several times before a backward pass, or update buffers
        meanwhile, are not for DistributedDataParallel.
        """
        if self.process.num_processes > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            mean = self.process.reduce(flat, "mean")
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


class EncoderMethod(PretrainingMethod):
    """An encoder and what is put on it, trained together by one loss with AdamW.

    Only the encoder is kept. Its batch normalisation takes the statistics of a process's own images.

    Attributes:
        method: its name in full.
        labels: whether it trains on any.
        architecture: of the encoder.
    """

    method: str
    labels = "without labels"

    architecture: Literal["resnet", "vit"] = "resnet"

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator):
        super().__init__(config, images, process)
        unet = presets.PRETRAIN[config.preset]["unet"]
        self.encoder_config = networks.encoder_config(unet, self.architecture, config.image_size)
        self.channels, self.side = self.encoder_config.channels, self.encoder_config.side
        self.encoder: Any = self.encoder_config.build()
        self.head: Any = self.make_head(images)
        self.network = nn.ModuleDict({"encoder": self.encoder, "head": self.head}).to(self.device).train()
        group = ParameterGroup(
            self.network.parameters(), given(config.learning_rate), given(config.weight_decay)
        )
        self.optimizer = make_optimizer("adamw", group)
        self.rates = self.make_rates(self.optimizer)

    @abstractmethod
    def make_head(self, images: ImageSplit) -> nn.Module:
        """What is trained on top of `encoder`."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of this process's images, (), with a graph."""

    def step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss(batch)
        loss.backward()
        self.average_gradients(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        return loss.detach()

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.encoder.parameters()]

    def parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "rates": self.rates}

    def backbone(self) -> EncoderBackbone:
        network = copy.deepcopy(self.encoder).cpu()
        return EncoderBackbone(network, self.encoder_config, self.config.method).to(self.device)

    def write(self, folder: Path, backbone: EncoderBackbone) -> None:
        backbone.save(folder)

    def card(self) -> Card:
        return Card(
            title=f"Encoder, {self.method}",
            introduction=f"Pre-trained by difflens with {self.config.method}, {self.labels}.",
            library="difflens",
            tags=("image-feature-extraction", "difflens"),
        )

    def facts(self) -> dict[str, str]:
        return encoder_facts(self.encoder_config, self.encoder, self.network)


def encoder_facts(config: EncoderConfig, encoder: nn.Module, *trained: nn.Module) -> dict[str, str]:
    """An encoder's rows of a model card, of which `trained` are the networks that were trained, itself
    included."""
    size, total = (sum(map(torch.numel, itertools.chain(*(each.parameters() for each in networks))))
                   for networks in ((encoder,), trained))  # fmt: skip
    arguments = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
    return {
        "encoder": f"timm's {config.architecture} with {arguments}",
        "parameters": f"{size:,} of the encoder, {total:,} trained",
    }
