"""Trains a classifier on a labelled split, and evaluates it."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from difflens.backbones.maps import Place
from difflens.configs.options import check_values, given
from difflens.configs.train import TrainConfig
from difflens.data.images import to_float
from difflens.data.loader import epoch_order, share_of
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, Reading
from difflens.metrics.classification import Evaluation, joined
from difflens.metrics.multi_label import MultiLabelEvaluation
from difflens.models.probe import MultiLabelProbe, Probe
from difflens.run.console import note, progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.processes import averaged, processes_for
from difflens.run.seeding import random_state_kept
from difflens.tasks.objectives import ProbeObjective
from difflens.training.loop import TrainingLoop
from difflens.training.objectives import Look
from difflens.training.optimisers import ParameterGroup, epoch_seed, make_optimizer, make_schedule

# with few images, an epoch takes less time than a checkpoint
_CHECKPOINT_SECONDS = 2.0

# bytes of cached maps that are fetched at once, in float32
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

    Order, augmentation and noise are functions of the seed and the epoch. A run that is resumed gives the
    same result as an uninterrupted one.

    Args:
        probe: extractor and head; what it trains changes in place.
        split: the training images, with labels.
        config: the options of the training.
        process: this process; None: a process alone.
        run: the run directory for the log, and for checkpoints at the ends of epochs; None: no log.
        cache: the maps of a frozen extractor, which replace the images; None: the extractor reads the images.
        skipped: receives one line for each image that cannot be read.
        label: the title of the progress bar.

    Returns:
        The seconds of training, without the extraction of a cache.

    Raises:
        DiffLensError: an option has a wrong value, loss or weights are no longer finite, the probe is for
            other labels, or its head has nothing to train or a normalisation that is not measured.
    """
    check_values(config)
    _check_labels(probe, split)
    if (normalisation := probe.head.normalisation) is not None and not normalisation.fitted:
        raise DiffLensError(
            "the normalisation of the head is not measured: `difflens.probe` measures it on the training "
            "features"
        )
    config = config.filled()
    # the seeds of dropout are not those of the caller
    with processes_for(process) as process, random_state_kept(process.device):
        probe.to(process.device)
        if cache is None:
            read = partial(_online_batches, probe, split, config, Reading.of(config, skipped))
            share = process.process_index, process.num_processes
            module = averaged(probe, process, some_unused=bool(probe.extractor.trained_blocks))
            objective = HeadObjective(probe, module, read, len(split), config, process, *share)
        else:  # a cache holds this process's share already
            read = partial(_cached_inputs, cache, process.device)
            objective = HeadObjective(probe, averaged(probe.head, process), read, len(cache), config, process)
        title = label or "training"
        loop = TrainingLoop(objective, process, run, title, checkpoint_seconds=_CHECKPOINT_SECONDS)
        return loop.train()


def _check_labels(probe: Probe, split: ImageSplit) -> None:
    """Raise DiffLensError unless the split has images with labels such as the probe gives."""
    if not len(split) or split.labels is None:
        raise DiffLensError(f"{split.name} has no {'images' if not len(split) else 'labels'}")
    if split.multi_label != isinstance(probe, MultiLabelProbe):
        labels, kind = ("several labels", MultiLabelProbe) if split.multi_label else ("one label", Probe)
        raise DiffLensError(f"{split.name}: an image has {labels}, so the probe must be a {kind.__name__}")
    classes = split.labels.shape[1] if split.multi_label else int(split.labels.max()) + 1
    if classes > probe.head.num_classes:
        raise DiffLensError(
            f"{split.name} has labels of {counted(classes, 'class')}, and the head is for "
            f"{probe.head.num_classes}"
        )


Inputs = tuple[tuple[Any, ...], Tensor]
"""The arguments of the trained module, and the labels."""


class HeadObjective(ProbeObjective):
    """The loss of a classifier; order, mixup and dropout are functions of (seed, epoch).

    Args:
        probe: the probe, on the process's device.
        trained: the probe or its head, which accelerate has wrapped.
        read: gives batches for the order of the images, (M,) long, the epoch and the batch size.
        count: the number of images, or of this process's share of them.
        rank, world: this process, and the number of processes that share the images.
        groups: the parameters to train; None: all parameters of the probe.
    """

    counter = "epoch"
    probe: Probe

    def __init__(
        self,
        probe: Probe,
        trained: nn.Module,
        read: Callable[[Tensor, int, int], Iterator[Inputs]],
        count: int,
        config: TrainConfig,
        process: Accelerator,
        rank: int = 0,
        world: int = 1,
        groups: Sequence[ParameterGroup] | None = None,
    ):
        self.trained, self.read, self.config = trained, read, config
        self.count, self.rank, self.world = count, rank, world
        self.targets = partial(probe.targets, classes=probe.head.num_classes)
        own = math.ceil(count / world)
        self.share = max(1, min(given(config.batch_size) // process.num_processes, own))
        if process.is_main_process and given(config.batch_size) % process.num_processes:
            note(
                f"{process.num_processes} processes do not divide a batch of {given(config.batch_size):,}: a "
                f"step has {counted(self.share * process.num_processes, 'image')}"
            )
        steps = math.ceil(own / self.share)
        if process.num_processes > 1:
            # shares may differ by one image, but all processes must take equally many steps
            steps = max(gather_object([steps]))
        self.epoch_iterations = self.counted = steps
        epochs, every = given(config.epochs), config.step_epochs
        self.iterations = epochs * steps
        groups = groups or probe.parameter_groups(
            given(config.learning_rate), given(config.weight_decay), config.layer_decay
        )
        optimizer = make_optimizer(given(config.optimizer), *groups)
        drops = [epoch / epochs for epoch in range(every, epochs + 1, every)] if every else []
        warmup = steps // 2 if config.warmup_steps is None else config.warmup_steps
        rates = make_schedule(optimizer, given(config.lr_schedule), self.iterations, warmup, drops)
        super().__init__(probe, process, self.share * process.num_processes, optimizer, rates)

    def batches(self, start: int) -> Iterator[Inputs | None]:
        seed = self.config.seed
        for epoch in itertools.count(start // self.epoch_iterations):
            order = epoch_order(self.count, seed, epoch, self.rank, self.world)
            if self.process.num_processes > 1:
                order = order[torch.arange(self.epoch_iterations * self.share) % len(order)]
            self.generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))  # of mixup
            # of dropout, of each process its own
            number = epoch * self.process.num_processes + self.process.process_index
            torch.manual_seed(epoch_seed(seed, number))
            # None stands for a batch without a readable image
            batches = itertools.chain(self.read(order, epoch, self.share), itertools.repeat(None))
            yield from itertools.islice(batches, self.epoch_iterations)

    def step(self, batch: Inputs | None) -> Tensor:
        if batch is None:
            return torch.zeros((), device=self.process.device)
        loss = self.loss(*mix(*batch, self.targets, given(self.config.mixup), self.generator))
        self.update((loss.sum(),))
        return loss.detach()

    def loss(self, inputs: tuple[Any, ...], target: Tensor) -> Tensor:
        """Return the loss, () with a graph; `target` is labels, or class probabilities, (B, K)."""
        return self.loss_of(self.trained(*inputs), target)

    def loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.probe.loss(logits, target, given(self.config.label_smoothing))

    def where(self, iteration: int) -> str:
        return f"in epoch {math.ceil(iteration / self.epoch_iterations)}"

    def record(self, look: Look) -> dict[str, Any]:
        epoch = look.iteration // self.epoch_iterations
        return {"epoch": epoch, "loss": look.loss, "learning_rate": self.learning_rate}


def _cached_inputs(
    cache: FeatureCache, device: torch.device, order: Tensor, epoch: int, batch_size: int
) -> Iterator[Inputs]:
    for maps, labels in cached_batches(cache, order, batch_size, device):
        yield (maps,), labels


def _online_batches(
    probe: Probe,
    split: ImageSplit,
    config: TrainConfig,
    reading: Reading,
    order: Tensor,
    epoch: int,
    batch_size: int,
) -> Iterator[Inputs]:
    draw = epoch + 1 if config.fresh_noise else 0
    for batch in reading.batches(
        probe.extractor, split, order, batch_size, config.seed, epoch, given(config.augment)
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
) -> Evaluation | MultiLabelEvaluation:
    """Predict the class of each image of `split` once, with the noise of draw 0; the training mode is
    restored.

    Args:
        classes: the names of the classes, in the order of the probe's scores.
        process: this process; None: a process alone.
        cache: the maps of the split; None: the extractor reads the images.
        skipped: receives one line for each image that cannot be read.

    Raises:
        DiffLensError: no image can be read, or the probe is for other labels.
    """
    _check_labels(probe, split)
    if len(classes) != probe.head.num_classes:
        raise DiffLensError(
            f"the head is for {counted(probe.head.num_classes, 'class')}, and {len(classes)} are named"
        )
    parts: list[Any] = []

    def keep(logits: Tensor, labels: Tensor, rows: Tensor) -> None:
        parts.append(probe.evaluation.of(rows, labels, logits, classes))

    with processes_for(process) as process, evaluating(probe):
        probe.to(process.device)
        if cache is not None:
            for chosen in torch.arange(len(cache)).split(256):
                keep(
                    probe.head(cache.batch(chosen, process.device)), cache.labels[chosen], cache.rows[chosen]
                )
        else:
            rows = share_of(len(split), process.process_index, process.num_processes)
            with progress_bar(process.is_main_process) as bar:
                task = bar.add_task("evaluating", total=len(rows), note="")
                for batch in Reading.of(config, skipped).batches(probe.extractor, split, rows, READ_BATCH):
                    assert batch.labels is not None
                    keep(probe(to_float(batch.images), batch.index), batch.labels, batch.rows)
                    bar.update(task, advance=len(batch))
        if process.num_processes > 1:
            parts = gather_object(parts)
    if not parts:
        raise DiffLensError(f"no image of the {split.name} split could be read")
    return joined(parts)


def cached_batches(
    cache: FeatureCache, order: Tensor, batch_size: int, device: torch.device
) -> Iterator[tuple[dict[Place, Tensor], Tensor]]:
    """Yield maps, (B, C, H, W) by place, and labels, of the entries `order`, (M,) long, in
    batches.

    Several batches of small maps are fetched at once, so that a linear head does not wait for them.
    """
    size = 4 * sum(math.prod(maps.shape[1:]) for maps in cache.maps.values())
    several = batch_size * max(1, _FETCHED_BYTES // (size * batch_size))
    for fetched in order.split(several):
        maps, labels = cache.batch(fetched, device), cache.labels[fetched].to(device)
        for start in range(0, len(fetched), batch_size):
            part = slice(start, start + batch_size)
            yield {place: values[part] for place, values in maps.items()}, labels[part]


def mix(
    inputs: tuple[Any, ...],
    labels: Tensor,
    targets: Callable[[Tensor], Tensor],
    alpha: float,
    generator: torch.Generator,
) -> tuple[tuple[Any, ...], Tensor]:
    """Mix pairs of inputs and their labels (mixup: Zhang et al., 2018).

    Args:
        inputs: the arguments of the module, of which the first is mixed: maps by place, or images.
        labels: as in `ImageSplit`.
        targets: gives class probabilities, (B, K), of labels.
        alpha: the parameter of the Beta distribution; 0 returns inputs and labels unchanged.

    Returns:
        The inputs, and class probabilities, (B, K); the labels if nothing is mixed.
    """
    if not alpha:
        return inputs, labels
    # Beta(alpha, alpha) is a / (a + b) of two Gamma(alpha) draws: torch has no Beta with a generator
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    share = a / (a + b) if a + b > 0 else 0.5
    partner = torch.randperm(len(labels), generator=generator).to(labels.device)
    first = inputs[0]
    mixed = (
        {place: share * maps + (1 - share) * maps[partner] for place, maps in first.items()}
        if isinstance(first, dict)
        else share * first + (1 - share) * first[partner]
    )
    target = targets(labels)
    return (mixed, *inputs[1:]), share * target + (1 - share) * target[partner]
