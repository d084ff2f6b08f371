"""Trains a head on a labelled split, and evaluates it."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn

from difflens.backbones.maps import Place
from difflens.configs.options import given
from difflens.configs.train import TrainConfig
from difflens.data.images import to_float
from difflens.data.loader import epoch_order
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, Reading
from difflens.metrics.classification import Evaluation
from difflens.models.probe import Probe
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator
from difflens.training.optimisers import epoch_seed, make_optimizer, make_schedule

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
        DiffLensError: the loss is no longer finite.
    """
    config = config.filled()
    process = process or accelerator()
    device = process.device
    probe.to(device)
    count = len(split if cache is None else cache)
    # a cache holds this process's share already
    rank, world = (process.process_index, process.num_processes) if cache is None else (0, 1)
    batch_size = max(1, min(given(config.batch_size) // process.num_processes, count))
    classes = probe.head.num_classes
    steps = math.ceil(math.ceil(count / world) / batch_size)
    if process.num_processes > 1:  # shares may differ by an image, but every process must take as many steps
        steps = max(gather_object([steps]))
    trained: nn.Module = process.prepare(probe if cache is None else probe.head)
    groups = probe.parameter_groups(
        given(config.learning_rate),
        given(config.weight_decay),
        1.0 if config.layer_decay is None else config.layer_decay,
    )
    optimizer = make_optimizer(given(config.optimizer), *groups)
    rates = make_schedule(
        optimizer, given(config.lr_schedule), given(config.epochs) * steps, steps // 2 if config.warmup_steps is None else config.warmup_steps,
        (config.step_epochs or 0) * steps,
    )  # fmt: skip
    start, seconds = 0, 0.0
    state = run.load_checkpoint() if run else None
    if state:
        probe.load_own_state(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        start, seconds = state["epoch"], state["seconds"]
    probe.train()
    saved = time.monotonic()
    with progress_bar(process.is_main_process) as bar:
        task = bar.add_task(
            label or "training", total=given(config.epochs) * steps, completed=start * steps, note=""
        )
        for epoch in range(start, given(config.epochs)):
            begun = time.monotonic()
            order = epoch_order(count, config.seed, epoch, rank, world)
            if process.num_processes > 1:
                order = order[torch.arange(steps * batch_size) % len(order)]
            total = torch.zeros((), device=device)
            generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
            torch.manual_seed(epoch_seed(config.seed, epoch) + rank)  # of dropout, the same after a resume
            for inputs, labels in _training_batches(
                probe, split, cache, order, batch_size, config, epoch, device, skipped
            ):
                inputs, target = mix(inputs, labels, classes, given(config.mixup), generator)
                logits = trained(*inputs)
                loss = nn.functional.cross_entropy(
                    logits, target, label_smoothing=given(config.label_smoothing)
                )
                optimizer.zero_grad(set_to_none=True)
                process.backward(loss)
                optimizer.step()
                rates.step()
                total += loss.detach()
                bar.update(task, advance=1)
            seconds += time.monotonic() - begun
            mean = float(process.reduce(total, "mean")) / steps
            if not math.isfinite(mean):
                raise DiffLensError(
                    f"the loss is no longer finite in epoch {epoch + 1}: lower the learning rate "
                    f"(now {given(config.learning_rate):g})"
                )
            bar.update(task, note=f"loss {mean:.3f}")
            if run:
                run.log({"epoch": epoch + 1, "loss": mean, "learning_rate": rates.get_last_lr()[0]})
            if run and (epoch + 1 == given(config.epochs) or time.monotonic() - saved >= _CHECKPOINT_SECONDS):
                run.save_checkpoint({
                    "probe": probe.own_state(), "optimizer": optimizer.state_dict(),
                    "rates": rates.state_dict(), "epoch": epoch + 1, "seconds": seconds,
                })  # fmt: skip
                saved = time.monotonic()
    if not all(bool(value.isfinite().all()) for value in probe.own_state().values()):
        raise DiffLensError(
            f"training diverged: lower the learning rate (now {given(config.learning_rate):g})"
        )
    if process.num_processes > 1:  # each process kept its own batch statistics
        for buffer in probe.buffers():
            broadcast(buffer)
    return seconds


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


def _training_batches(
    probe: Probe,
    split: ImageSplit,
    cache: FeatureCache | None,
    order: Tensor,
    batch_size: int,
    config: TrainConfig,
    epoch: int,
    device: torch.device,
    skipped: list[str] | None,
) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """What the trained module takes, and the labels."""
    if cache is not None:
        for maps, labels in cached_batches(cache, order, batch_size, device):
            yield (maps,), labels
        return
    draw = epoch + 1 if config.fresh_noise else 0
    for batch in Reading.of(config, skipped).batches(
        probe.extractor, split, order, batch_size, config.seed, epoch, given(config.augment)
    ):
        assert batch.labels is not None
        yield (to_float(batch.images), batch.index, draw), batch.labels


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
