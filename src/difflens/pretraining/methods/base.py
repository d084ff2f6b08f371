"""What the loop of pre-training asks of any method, and what those that train an encoder by one loss share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
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
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.pretraining import networks
from difflens.pretraining.export import Card
from difflens.training.optimisers import ParameterGroup, make_optimizer, make_schedule


class Learner(ABC):
    """The networks of one method, their optimisers, and a step of them.

    Whatever is random in a step is a function of (seed, epoch, image), so that neither a stop nor the number of
    processes changes it.

    Attributes:
        description: of what is minimised.
        channels, side: of the images that it takes.
        rates: the schedule of the learning rate.
        epoch: the one under way, from 0.
    """

    description: str
    channels: int
    side: int
    rates: LambdaLR

    def __init__(self, config: PretrainConfig, process: Accelerator):
        self.config, self.process, self.device = config, process, process.device
        self.precision: Precision = config.precision or (
            "bfloat16" if self.device.type == "cuda" else "float32"
        )
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Of all steps from here on."""
        self.epoch = epoch

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """One step of every optimiser; the mean loss of this process's images, detached, ()."""

    @abstractmethod
    def saved_weights(self) -> list[Tensor]:
        """What must be finite for the run to go on."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state` goes on as if nothing had happened."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def backbone(self) -> Backbone:
        """A frozen copy of what has been learnt, on the device."""

    @abstractmethod
    def write(self, folder: Path, backbone: Any) -> None:
        """Fill an existing folder with what `load_backbone` reads; `backbone` is `backbone()`'s, and may be changed."""

    @abstractmethod
    def card(self) -> Card:
        """What the model card says of it."""

    def facts(self) -> dict[str, str]:
        """Rows for the model card's table."""
        return {}

    def make_rates(self, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
        warmup = min(self.config.warmup_steps, total_steps // 10)
        return make_schedule(optimizer, "cosine", total_steps, warmup)

    def autocast(self) -> torch.autocast:
        """Lower precision where it is wanted."""
        return torch.autocast(
            self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Those of several processes become their mean.

        By hand, since networks that are called several times before a backward pass, or update buffers meanwhile, are
        not for DistributedDataParallel.
        """
        if self.process.num_processes > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            mean = self.process.reduce(flat, "mean")
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


class EncoderLearner(Learner):
    """An encoder and what is put on it, trained together by one loss with AdamW.

    Only the encoder is kept. Its batch normalisation takes the statistics of a process's own images.

    Attributes:
        method: its name in full.
        labels: whether it was shown any.
        architecture: of the encoder.
    """

    method: str
    labels = "without labels"

    architecture: Literal["resnet", "vit"] = "resnet"

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator, total_steps: int):
        super().__init__(config, process)
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
        self.rates = self.make_rates(self.optimizer, total_steps)

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

    def saved_weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.encoder.parameters()]

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])

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
    """An encoder's rows of a model card, of which `trained` are the networks that were trained, itself included."""
    size, total = (sum(map(torch.numel, chain(*(each.parameters() for each in networks))))
                   for networks in ((encoder,), trained))  # fmt: skip
    arguments = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
    return {
        "encoder": f"timm's {config.architecture} with {arguments}",
        "parameters": f"{size:,} of the encoder, {total:,} trained",
    }
