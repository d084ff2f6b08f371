"""The base of the pre-training methods, and of those that train an encoder with one loss."""

import copy
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from difflens import presets
from difflens.backbones.base import Backbone
from difflens.backbones.encoder import EncoderBackbone, EncoderConfig
from difflens.choices import OnBadImage, Precision, TrainingPrecision
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.images import BadImage
from difflens.data.loader import Batch, epoch_order, iterate
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.pretraining import networks
from difflens.pretraining.export import Card
from difflens.pretraining.online_probe import OnlineProbe, scalars
from difflens.pretraining.precision import usual_precision
from difflens.run.console import note, warn
from difflens.run.reading import checked
from difflens.run.seeding import random_state_kept
from difflens.training.batch_norm import steady_batch_norms
from difflens.training.objectives import Look, Objective
from difflens.training.optimisers import ParameterGroup, check_moments, make_optimizer, make_schedule


class TrainingOptions(Protocol):
    """The options of a command that trains a network on images without a task."""

    @property
    def seed(self) -> int: ...

    @property
    def epochs(self) -> int | None: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def augment(self) -> Literal["none", "flip"] | None: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def precision(self) -> TrainingPrecision: ...

    @property
    def workers(self) -> int | None: ...

    @property
    def on_bad_image(self) -> OnBadImage: ...

    @property
    def checkpoint_minutes(self) -> float | None: ...

    @property
    def max_minutes(self) -> float | None: ...


class PretrainingMethod(Objective):
    """The objective of a pre-training method: its networks, their optimisers, and a step.

    All that is random in a step is a function of (seed, epoch, image). Neither a stop nor the number of
    processes changes it.

    Args:
        config: the resolved options.
        images: the images to train on.
        process: this process.

    Attributes:
        description: the loss in words, for the model card.
        channels, side: the shape of the images that the network takes.
        epoch: the current epoch, from 0.
        losses: the losses of the current epoch's steps up to the last look, over all processes.
        skipped: a line for each image that this process could not read.
        probe: measures the network at the end of some epochs; None: nothing does.
        images_before: the images that the initial weights had seen; None if it is not known.
    """

    images_before: int | None = 0
    description: str
    channels: int
    side: int
    counter = "step"

    def __init__(self, config: TrainingOptions, images: ImageSplit, process: Accelerator):
        self.config, self.images, self.process, self.device = config, images, process, process.device
        self.precision: Precision = (
            usual_precision(self.device) if config.precision == "auto" else config.precision
        )
        rounded = ", or use --precision float32" if self.precision != "float32" else ""
        self.remedy = f"lower --learning-rate{rounded}"
        self.batch_size = given(config.batch_size)
        if self.batch_size > len(images):
            repeated = counted(len(images), "image")
            note(
                f"a batch of {self.batch_size:,} repeats {repeated}, with the same noise: lower --batch-size"
            )
        self.epoch_iterations = math.ceil(len(images) / self.batch_size)
        self.iterations = given(config.epochs) * self.epoch_iterations
        self.epoch = 0
        self.losses: list[float] = []
        self.skipped: list[str] = []
        self.probe: OnlineProbe | None = None
        self.probe_failed = False

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch of the next steps."""
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
            try:
                yield from iterate(
                    self.images,
                    channels=self.channels,
                    side=self.side,
                    batch_size=self.batch_size // process.num_processes,
                    rows=rows,
                    augment=given(config.augment),
                    seed=config.seed,
                    epoch=epoch,
                    workers=config.workers,
                    on_bad_image=config.on_bad_image,
                    bad=self.skipped,
                    replace=True,
                    device=self.device,
                )
            except BadImage as error:
                advice = "; --on-bad-image skip leaves it out" if config.on_bad_image == "error" else ""
                raise BadImage(error.where, f"{error.reason}{advice}") from error

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """Do one step of all optimisers; return the mean loss of this process's images, (), detached."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return networks, optimisers and schedules, which have a `state_dict`, by their names in a
        checkpoint."""

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()} | {"losses": self.losses}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
            if isinstance(part, Optimizer):
                check_moments(part)
        self.losses = checked(list[float], state["losses"], "losses")

    def where(self, iteration: int) -> str:
        return f"in epoch {math.ceil(iteration / self.epoch_iterations)} (step {iteration})"

    def record(self, look: Look) -> dict[str, Any] | None:
        self.losses += look.losses.flatten().tolist()
        if look.iteration % self.epoch_iterations:
            return None
        loss, self.losses = fmean(self.losses), []
        rate = (look.iteration - self.first) * self.batch_size / (time.monotonic() - self.began)
        epoch = look.iteration // self.epoch_iterations
        probed = self.probe is not None and self.probe.due(epoch)
        return {
            "epoch": epoch,
            "step": look.iteration,
            "loss": loss,
            "images_per_second": round(rate, 1),
            "learning_rate": self.learning_rate,
            "seconds": round(look.seconds, 1),
            **(self._probed() if probed else {}),
        }

    def curves(self, look: Look, record: Mapping[str, Any] | None) -> dict[str, float]:
        return {**super().curves(look, record), **scalars(record or {})}

    def _probed(self) -> dict[str, Any]:
        """Measure a copy of the network, and leave the random state as it is; {} if its features overflow."""
        assert self.probe is not None
        with random_state_kept(self.device):
            backbone = self.backbone()
            if self.process.num_processes > 1:
                # batch normalisation keeps statistics in each process, and those of the first one are saved
                for buffer in backbone.buffers():
                    broadcast(buffer)
            try:
                return self.probe.measure(backbone)
            except DiffLensError as error:
                if not self.probe_failed and self.process.is_main_process:
                    warn(f"the probe measures nothing, and the training goes on: {error}")
                self.probe_failed = True
                return {}

    @abstractmethod
    def backbone(self) -> Backbone:
        """Return a frozen copy of the trained network, on the device, with the weights that `write` saves."""

    @abstractmethod
    def write(self, folder: Path, backbone: Any) -> None:
        """Fill an existing folder, which `load_backbone` reads, with the result of `backbone()`, which may be
        changed."""

    @abstractmethod
    def card(self) -> Card:
        """Return the part of the model card that depends on the method."""

    def facts(self) -> dict[str, str]:
        """Return further rows of the model card's table."""
        return {}

    def make_rates(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        warmup = min(self.config.warmup_steps, self.iterations // 10)
        return make_schedule(optimizer, "cosine", self.iterations, warmup)

    def autocast(self) -> torch.autocast:
        """Return a context of the network's precision."""
        return torch.autocast(
            self.device.type, getattr(torch, self.precision), enabled=self.precision != "float32"
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of each process by their mean over all processes.

        DistributedDataParallel cannot do this: some networks are called several times before a backward pass,
        or update buffers in between.
        """
        if self.process.num_processes > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            mean = self.process.reduce(flat, "mean")
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


class EncoderMethod(PretrainingMethod):
    """An encoder and a head on it, trained together with one loss and AdamW.

    Only the encoder is saved. Its batch normalisation uses the statistics of each process's own images.

    Attributes:
        method: the full name of the method.
        labels: the use of labels in words, for the model card.
        architecture: the kind of encoder.
    """

    method: str
    labels = "without labels"
    config: PretrainConfig

    architecture: Literal["resnet", "vit"] = "resnet"

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator):
        super().__init__(config, images, process)
        unet = presets.PRETRAIN[config.preset]["unet"]
        self.encoder_config = networks.encoder_config(unet, self.architecture, config.image_size)
        self.channels, self.side = self.encoder_config.channels, self.encoder_config.side
        self.encoder: Any = self.encoder_config.build()
        self.head: Any = self.make_head(images)
        self.network = nn.ModuleDict({"encoder": self.encoder, "head": self.head}).to(self.device).train()
        steady_batch_norms(self.network)
        group = ParameterGroup(
            self.network.parameters(), given(config.learning_rate), given(config.weight_decay)
        )
        self.optimizer = make_optimizer("adamw", group)
        self.rates = self.make_rates(self.optimizer)

    @abstractmethod
    def make_head(self, images: ImageSplit) -> nn.Module:
        """Return the head that is trained on `encoder`."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of this process's images, (), with a graph."""

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
    """Return the rows of an encoder's model card; `trained` are all trained networks, with the encoder."""
    size = sum(map(torch.numel, encoder.parameters()))
    total = sum(parameter.numel() for network in trained for parameter in network.parameters())
    arguments = ", ".join(f"{name}={value}" for name, value in config.arguments.items())
    return {
        "encoder": f"timm's {config.architecture} with {arguments}",
        "parameters": f"{size:,} of the encoder, {total:,} trained",
    }
