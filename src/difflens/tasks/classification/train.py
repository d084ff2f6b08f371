"""Trains a head on a labelled split, and evaluates it."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from difflens.backbones.maps import Place
from difflens.configs.options import given
from difflens.configs.train import TrainConfig
from difflens.data.images import to_float
from difflens.data.loader import epoch_order
from difflens.data.split import ImageSplit
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, Reading
from difflens.metrics.classification import Evaluation
from difflens.models.probe import Probe
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator
from difflens.tasks.objectives import ProbeObjective
from difflens.training.loop import Pace, TrainingLoop
from difflens.training.objectives import Look
from difflens.training.optimisers import ParameterGroup, epoch_seed, make_optimizer, make_schedule

# with few images an epoch is shorter than writing a checkpoint
_CHECKPOINT_SECONDS = 2.0

# cached maps that are fetched at once, in float32
_FETCHED_BYTES = 4 << 20


def fit(
    probe: Probe,
    split: ImageSplit,
    config: TrainConfig,
    process: Accelerator | None = None,
    run: RunDirectory | None = None,
    cache: FeatureCache | None = None,
    skipped: list[str] | None = None,
    label: str = "",
) -> float:
    """Train `probe` in place on a labelled split.

    Order, augmentation and noise are functions of the seed and the epoch, so a run that resumes from `run`'s
    checkpoint ends as an uninterrupted one does.

    Args:
        cache: of a frozen extractor's maps, to train on instead of the images.
        run: where to log, and to keep checkpoints at the ends of epochs.
        label: what the progress bar calls this.

    Returns:
        Seconds of training, extraction of a cache not counted.

    Raises:
        DiffLensError: loss or weights are no longer finite.
    """
    config = config.filled()
    process = process or accelerator()
    probe.to(process.device)
    objective = (
        OnlineObjective(probe, split, config, process, Reading.of(config, skipped))
        if cache is None
        else CachedObjective(probe, cache, config, process)
    )
    pace = objective.pace(_CHECKPOINT_SECONDS)
    return TrainingLoop(objective, pace, process, run, label or "training").train()


class HeadObjective(ProbeObjective):
    """Cross-entropy of a classifier, by epochs: order, mixup and dropout are functions of (seed, epoch).

    Args:
        probe: on the process's device.
        trained: the probe or its head, which several processes have wrapped.
        count: images, or those that this process has of them.
        rank, world: of how many processes that share the images which one this is.
        groups: the parameters to train; None: all of the probe's.
    """

    probe: Probe

    def __init__(
        self,
        probe: Probe,
        trained: nn.Module,
        config: TrainConfig,
        process: Accelerator,
        count: int,
        rank: int = 0,
        world: int = 1,
        groups: Sequence[ParameterGroup] | None = None,
    ):
        self.trained, self.config = trained, config
        self.count, self.rank, self.world = count, rank, world
        self.share = max(1, min(given(config.batch_size) // process.num_processes, count))
        self.steps = math.ceil(math.ceil(count / world) / self.share)
        if (
            process.num_processes > 1
        ):  # shares may differ by an image, but every process must take as many steps
            self.steps = max(gather_object([self.steps]))
        groups = groups or probe.parameter_groups(
            given(config.learning_rate),
            given(config.weight_decay),
            config.layer_decay,
        )
        optimizer = make_optimizer(given(config.optimizer), *groups)
        total, every = given(config.epochs) * self.steps, (config.step_epochs or 0) * self.steps
        warmup = self.steps // 2 if config.warmup_steps is None else config.warmup_steps
        drops = [step / total for step in range(every, total + 1, every)] if every else []
        rates = make_schedule(optimizer, given(config.lr_schedule), total, warmup, drops)
        super().__init__(probe, process, self.share * process.num_processes, optimizer, rates)

    @abstractmethod
    def read(self, order: Tensor, epoch: int) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """What the trained module takes, and the labels, of the images `order`, (M,) long, batch by batch."""

    def loss(self, inputs: tuple[Any, ...], target: Tensor) -> Tensor:
        """() with a graph; `target` are labels, (B,) long, or probabilities of the classes, (B, K)."""
        return self.cross_entropy(self.trained(*inputs), target)

    def pace(self, checkpoint_seconds: float = 0.0) -> Pace:
        return Pace(given(self.config.epochs) * self.steps, self.steps, checkpoint_seconds=checkpoint_seconds)

    def batches(self, start: int) -> Iterator[Any]:
        seed = self.config.seed
        for epoch in itertools.count(start // self.steps):
            order = epoch_order(self.count, seed, epoch, self.rank, self.world)
            if self.process.num_processes > 1:
                order = order[torch.arange(self.steps * self.share) % len(order)]
            self.generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))  # of mixup
            torch.manual_seed(epoch_seed(seed, epoch) + self.rank)  # of dropout
            # a batch of which no image could be read is None
            read = itertools.chain(self.read(order, epoch), itertools.repeat(None))
            yield from itertools.islice(read, self.steps)

    def step(self, batch: tuple[tuple[Any, ...], Tensor] | None) -> Tensor:
        if batch is None:
            return torch.zeros((), device=self.process.device)
        inputs, target = mix(*batch, self.probe.head.num_classes, given(self.config.mixup), self.generator)
        loss = self.loss(inputs, target)
        self.update(loss.sum())
        return loss.detach()

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target, label_smoothing=given(self.config.label_smoothing))

    def position(self, iteration: int) -> dict[str, int]:
        return {"epoch": iteration // self.steps}

    def iteration(self, position: dict[str, Any]) -> int:
        return int(position["epoch"]) * self.steps

    def where(self, iteration: int) -> str:
        return f"in epoch {math.ceil(iteration / self.steps)}"

    def record(self, look: Look) -> dict[str, Any]:
        return {**self.position(look.iteration), "loss": look.loss, "learning_rate": self.learning_rate}


class CachedObjective(HeadObjective):
    """A head on cached maps of a frozen extractor; a cache holds this process's share already."""

    def __init__(self, probe: Probe, cache: FeatureCache, config: TrainConfig, process: Accelerator):
        self.cache = cache
        super().__init__(probe, process.prepare(probe.head), config, process, len(cache))

    def read(self, order: Tensor, epoch: int) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        for maps, labels in cached_batches(self.cache, order, self.share, self.process.device):
            yield (maps,), labels

    def loss(self, inputs: tuple[Any, ...], target: Tensor) -> Tensor:
        return self.cross_entropy(self.trained(*inputs), target)


class OnlineObjective(HeadObjective):
    """A head and perhaps its extractor on images: augmented, or with new noise in every epoch."""

    def __init__(
        self, probe: Probe, split: ImageSplit, config: TrainConfig, process: Accelerator, reading: Reading
    ):
        self.split, self.reading = split, reading
        rank, world = process.process_index, process.num_processes
        super().__init__(probe, process.prepare(probe), config, process, len(split), rank, world)

    def read(self, order: Tensor, epoch: int) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        config, extractor = self.config, self.probe.extractor
        draw = epoch + 1 if config.fresh_noise else 0
        for batch in self.reading.batches(
            extractor, self.split, order, self.share, config.seed, epoch, given(config.augment)
        ):
            assert batch.labels is not None
            yield (to_float(batch.images), batch.index, draw), batch.labels


def evaluate(
    probe: Probe,
    split: ImageSplit,
    classes: tuple[str, ...],
    config: TrainConfig,
    process: Accelerator | None = None,
    cache: FeatureCache | None = None,
    skipped: list[str] | None = None,
) -> Evaluation:
    """Predict every image of `split` exactly once, with the noise of draw 0, and restore the training mode."""
    process = process or accelerator()
    device = process.device
    probe.to(device)
    parts: list[tuple[Tensor, ...]] = []

    def keep(logits: Tensor, labels: Tensor, rows: Tensor) -> None:
        probability = logits.float().softmax(1)
        best = probability.topk(min(5, len(classes)))
        parts.append((rows.cpu(), labels.cpu(), best.indices.cpu(), best.values[:, 0].cpu()))

    with evaluating(probe):
        if cache is not None:
            for chosen in torch.arange(len(cache)).split(256):
                keep(probe.head(cache.batch(chosen, device)), cache.labels[chosen], cache.rows[chosen])
        else:
            rows = epoch_order(len(split), 0, 0, process.process_index, process.num_processes, shuffle=False)
            with progress_bar(process.is_main_process) as bar:
                task = bar.add_task("evaluating", total=len(rows), note="")
                for batch in Reading.of(config, skipped).batches(probe.extractor, split, rows, READ_BATCH):
                    assert batch.labels is not None
                    keep(probe(to_float(batch.images), batch.index), batch.labels, batch.rows)
                    bar.update(task, advance=len(batch))
    if process.num_processes > 1:
        parts = gather_object(parts)
    rows, labels, ranked, confidence = (torch.cat(column) for column in zip(*parts, strict=True))
    order = rows.argsort()
    return Evaluation(rows[order], labels[order], ranked[order], confidence[order], classes)


def cached_batches(
    cache: FeatureCache, order: Tensor, batch_size: int, device: torch.device
) -> Iterator[tuple[dict[Place, Tensor], Tensor]]:
    """Maps and labels of the entries `order`, (M,) long, batch by batch.

    Several batches of small maps are fetched at once: a linear head would otherwise wait for them.
    """
    size = 4 * sum(math.prod(maps.shape[1:]) for maps in cache.maps.values())
    several = batch_size * max(1, _FETCHED_BYTES // (size * batch_size))
    for fetched in order.split(several):
        maps, labels = cache.batch(fetched, device), cache.labels[fetched].to(device)
        for start in range(0, len(fetched), batch_size):
            part = slice(start, start + batch_size)
            yield {place: values[part] for place, values in maps.items()}, labels[part]


def mix(
    inputs: tuple[Any, ...], labels: Tensor, classes: int, alpha: float, generator: torch.Generator
) -> tuple[tuple[Any, ...], Tensor]:
    """Mixup of what the module takes (maps by place, or images first), with labels as class probabilities."""
    if not alpha:
        return inputs, labels
    # of two Gamma(alpha) draws the first one's share is Beta(alpha, alpha); torch samples neither from a generator
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    share = a / (a + b) if a + b > 0 else 0.5
    partner = torch.randperm(len(labels), generator=generator).to(labels.device)
    first = inputs[0]
    mixed = (
        {place: share * maps + (1 - share) * maps[partner] for place, maps in first.items()}
        if isinstance(first, dict)
        else share * first + (1 - share) * first[partner]
    )
    target = nn.functional.one_hot(labels, classes).to(torch.get_default_dtype())
    return (mixed, *inputs[1:]), share * target + (1 - share) * target[partner]
