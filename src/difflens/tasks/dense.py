"""What segmentation and detection share: their settings, and a loop over iterations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.configs.dense import DenseConfig
from difflens.data.dense.base import DenseData
from difflens.data.dense.samples import Labels, Samples
from difflens.data.images import to_float
from difflens.errors import DiffLensError, listing
from difflens.extractors.config import ExtractorConfig
from difflens.heads.pyramid import usual_blocks, usual_strides
from difflens.models.probe import DenseProbe
from difflens.run.directory import settings_of
from difflens.run.provenance import environment
from difflens.tasks.objective import ProbeObjective
from difflens.training.loop import Pace
from difflens.training.objectives import Look
from difflens.training.optimisers import epoch_seed, make_optimizer, make_schedule

FREE = ("resume", "device", "checkpoint_activations", "workers", "checkpoint_minutes", "out")
"""What may differ between a run and its continuation."""


def _check_maps(backbone: Backbone, blocks: tuple[int, ...], side: int) -> None:
    """DiffLensError if a network that is no U-Net, as a vision transformer, does not take images of another side."""
    if isinstance(backbone, DiffusionBackbone) or side == backbone.image_size:
        return
    try:
        with torch.no_grad():
            maps = backbone.features(torch.zeros(1, backbone.in_channels, side, side), 0, blocks)
    except Exception as error:  # each family of networks refuses sizes in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DiffLensError(
            f"{backbone.spec} does not take images of side {side} ({reason}): leave --side at {backbone.image_size}, or "
            "say with --image-size what the network is to be made for"
        ) from error
    for index, each in maps.items():
        if each.shape[-1] * backbone.block(index).stride != side:
            raise DiffLensError(
                f"block {index} of {backbone.spec} gives a map of side {each.shape[-1]} for images of side {side}, which "
                f"is not its stride, {backbone.block(index).stride}: choose another --side"
            )


@dataclass(frozen=True)
class Plan:
    """Where to read, and the shape of what reads: side of the squares, strides of the levels, channels."""

    extractor: ExtractorConfig
    side: int
    strides: tuple[int, ...]
    width: int


def make_plan(config: DenseConfig, backbone: Backbone) -> Plan:
    """What the settings mean on a backbone; DiffLensError if it has no such place, or cannot take such images."""
    blocks = backbone.check_blocks(config.blocks or usual_blocks(backbone))
    steps = config.noise_steps or (min(backbone.defaults.fusion_noise_steps),)
    extractor = ExtractorConfig(
        config.extractor, blocks, steps, config.seed, config.feedback_blocks, config.from_block, config.precision,
        checkpoint=config.checkpoint_activations,
    )  # fmt: skip
    side = config.side or backbone.image_size
    backbone.check_side(side)
    _check_maps(backbone, blocks, side)
    strides = usual_strides(backbone, blocks)
    wide = max(backbone.block(index).channels for index in blocks) >= 512
    return Plan(extractor, side, strides, config.width or (256 if wide else 64))


def labelled_rows(config: DenseConfig, count: int) -> Tensor | None:
    """The training images that `label_fraction` leaves, at least one."""
    if config.label_fraction is None:
        return None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: max(1, round(config.label_fraction * count))].sort().values


T = TypeVar("T")

Loss = Callable[[Tensor, Tensor, int, list[Labels]], dict[str, Tensor]]
"""From images (B, C, S, S) in [-1, 1], their index, the draw of the noise and their labels to the parts of the loss."""


def given(value: T | None) -> T:
    """A field that is filled in."""
    assert value is not None
    return value


def settings_of_run(config: DenseConfig, model: Any, data: DenseData[Any]) -> dict[str, Any]:
    """What makes a run the same run: its settings, where it reads, and the content of backbone and data."""
    extractor = model.probe.extractor
    return settings_of(config, FREE) | {
        "blocks": extractor.blocks,
        "noise_steps": extractor.noise_steps,
        "backbone_fingerprint": model.fingerprint,
        "data_fingerprint": data.fingerprint(),
    }


@contextmanager
def enough_memory() -> Iterator[None]:
    """A GPU's lack of memory as a DiffLensError that says what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DiffLensError(
            "the GPU has too little memory: lower --batch-size, --side or --width, or read a frozen backbone with "
            "--precision bfloat16; of feedback, --checkpoint-activations keeps less"
        ) from error


class DenseObjective(ProbeObjective):
    """A dense head, and perhaps its extractor, by the parts of a loss.

    Args:
        loss: makes the loss from the module to train, which several processes have wrapped.

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
        self.total, batch_size = given(config.iterations), given(config.batch_size)
        if batch_size % process.num_processes:
            raise DiffLensError(
                f"batch-size {batch_size} is not a multiple of {process.num_processes} processes"
            )
        self.compute = loss(process.prepare(probe.to(process.device)))
        groups = probe.parameter_groups(
            given(config.learning_rate), given(config.weight_decay), config.layer_decay
        )
        optimizer = make_optimizer(given(config.optimizer), *groups, momentum=config.momentum)
        warmup = config.warmup_iterations
        rates = make_schedule(
            optimizer, given(config.lr_schedule), self.total, min(100, self.total // 10) if warmup is None else warmup,
            config.step_at, decay_in_warmup=True,
        )  # fmt: skip
        super().__init__(probe, process, batch_size, optimizer, rates)

    def pace(self) -> Pace:
        return Pace(
            self.total,
            epoch=max(1, min(50, self.total // 20)),
            checkpoint_seconds=60 * self.config.checkpoint_minutes,
        )

    def batches(self, start: int) -> Iterator[Any]:
        rank, world = self.process.process_index, self.process.num_processes
        read = self.samples.training(start, self.total, self.batch_size, rank, world)
        return enumerate(read, start=start + 1)

    def step(self, batch: tuple[int, tuple[list[int], list[Tensor], list[Labels]]]) -> Tensor:
        number, (rows, images, labels) = batch
        device, rank, world = self.process.device, self.process.process_index, self.process.num_processes
        # of dropout and of the regions that are sampled
        torch.manual_seed(epoch_seed(self.config.seed, number * world + rank))
        losses = self.compute(
            to_float(torch.stack(images).to(device)),
            self.samples.split.index[rows].to(device),
            number if self.config.fresh_noise else 0,
            [{key: value.to(device) for key, value in each.items()} for each in labels],
        )
        self.parts, loss = [*losses], torch.stack([*losses.values()])
        self.update(loss.sum())
        return loss.detach()

    def position(self, iteration: int) -> dict[str, int]:
        return {"iteration": iteration}

    def iteration(self, position: dict[str, Any]) -> int:
        return int(position["iteration"])

    def where(self, iteration: int) -> str:
        return f"at iteration {iteration}"

    def record(self, look: Look) -> dict[str, Any]:
        parts = dict(zip(self.parts, look.means, strict=True)) if len(self.parts) > 1 else {}
        position = self.position(look.iteration)
        return {**position, "loss": look.loss, **parts, "learning_rate": self.learning_rate}


def provenance(
    config: DenseConfig, model: Any, data: DenseData[Any], process: Accelerator
) -> dict[str, object]:
    """Rows of a dense report's closing table."""
    extractor = model.probe.extractor
    return {
        "Backbone": f"{config.backbone}, fingerprint {model.fingerprint[:12]}",
        "Places read": f"blocks {listing(extractor.blocks)} at noise steps {listing(extractor.noise_steps)}, "
        f"{config.extractor} extractor, levels of strides {listing(model.head.strides)}, {model.head.side} pixels",
        "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}, {len(data.bad)} bad annotations left out",
        "Seed": config.seed,
        **environment(process.device),
    }
