"""Train a head on a backbone's features, and evaluate it once on the test split."""

import csv
import io
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn

from difflens import presets
from difflens.backbones.blocks import Defaults
from difflens.data.images import Augmentation, to_float
from difflens.data.loader import OnBadImage, epoch_order, iterate
from difflens.data.sources import load_data
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, listing, require
from difflens.extract import Extractor
from difflens.heads import Head, HeadConfig, HeadName, Place, make_head
from difflens.heads.base import pool_to
from difflens.model import BackboneConfig, ExtractorConfig, ExtractorName, Probe, TrainedModel, evaluating
from difflens.noise import ScheduleName
from difflens.runs import FINISHED, RunDirectory
from difflens.tasks.evaluation import Evaluation
from difflens.training import (
    OptimizerName,
    Precision,
    ScheduleKind,
    accelerator,
    epoch_seed,
    make_optimizer,
    make_schedule,
    progress_bar,
)  # fmt: skip

HeadChoice = Literal["linear", "mlp", "cnn", "attention", "difformer", "diffeed"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a probe is trained; the same for every head and extractor."""

    epochs: int = 20
    batch_size: int = 128
    """Images per step, over all processes."""
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    lr_schedule: ScheduleKind = "cosine"
    """Learning rate: cosine to zero, x0.1 every `step_epochs`, or constant."""
    step_epochs: int = 7
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Blend pairs of inputs (cached features, or images) and their labels, with a share drawn from
    Beta(mixup, mixup) for every batch (Zhang et al., 2018). 0: off."""
    augment: Augmentation = "none"
    """none; flip; crop: the paper's random resized crop and flip. With none, a frozen extractor runs once."""
    fresh_noise: bool = True
    """Draw new noise in every epoch where features are not cached."""
    seed: int = 0
    """Of the head's weights, the order of the images, the augmentation and the noise."""
    on_bad_image: OnBadImage = "error"
    """What to do with an image that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train a head on frozen diffusion features and evaluate it once on the test split.

    A field left at None takes the preset's value, or else what fits head and backbone.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, pixels, or random: before any of them."""
    data: str = "fashion"
    """fashion, fashion-full, idx:FOLDER, folder:PATH (or the path alone), torchvision:NAME, hf:ID."""
    preset: str | None = None
    """A recipe of `difflens.presets.PROBE`, such as paper-attention."""
    head: HeadChoice | None = None
    """diffeed is the attention head on the feedback extractor. (default: attention)"""
    extractor: ExtractorName | None = None
    """frozen, feedback (DifFeed), or finetuned. (default: frozen)"""
    blocks: tuple[int, ...] | None = None
    """Blocks to read."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at."""
    feedback_blocks: tuple[int, ...] | None = None
    """Decoder blocks that DifFeed sends back."""
    from_block: int = 1
    """First block to train with the finetuned extractor."""
    pool: int | None = None
    """Side that larger maps are pooled to: 2 for linear and MLP, 16 for the others; 0: no pooling."""
    width: int | None = None
    """Width of the head."""
    depth: int | None = None
    """Depth of the head."""
    dropout: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step, over all processes. (default: 128)"""
    optimizer: OptimizerName | None = None
    """(default: adamw)"""
    learning_rate: float | None = None
    weight_decay: float | None = None
    lr_schedule: ScheduleKind | None = None
    """Learning rate: cosine to zero (default), x0.1 every `step_epochs`, or constant."""
    step_epochs: int | None = None
    warmup_epochs: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    """Blend pairs of inputs and labels, the share drawn from Beta(mixup, mixup). (default: the head's)"""
    augment: Augmentation | None = None
    """none (default); flip; crop: the paper's random crop and flip. With none, a frozen extractor runs once."""
    fresh_noise: bool = True
    """Draw new noise in every epoch where features are not cached."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic; heads are always float32."""
    cache_gigabytes: float = 4.0
    """Features beyond this lie in a file in the run directory while training, not in memory."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    limit: int | None = None
    """Train on the first so many images only."""
    seed: int = 0
    """Of the head's weights, the order of the images, the augmentation and the noise."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read, and lists them in metrics.json."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Go on with the run in `out`."""

    def recipe(self) -> dict[str, Any]:
        """Values for fields left at None: the preset's, or else the head's defaults."""
        if self.preset is not None and self.preset not in presets.PROBE:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets.PROBE))}")
        preset = presets.PROBE.get(self.preset or "", {})
        if self.head is not None and self.head != preset.get("head", self.head):
            raise DiffLensError(f"the preset {self.preset} is for the head {preset['head']}, not {self.head}")
        head = self.head or preset.get("head", "attention")
        return {**presets.HEADS[head], **preset, "head": head}

    def resolved(self) -> "ProbeConfig":
        """With every field that a recipe or a general default knows filled in."""
        recipe = self.recipe()
        self.check()
        general = {field.name: field.default for field in fields(TrainConfig)}
        filled: dict[str, Any] = {
            field.name: recipe.get(field.name, general.get(field.name))
            for field in fields(self)
            if getattr(self, field.name) is None
        }
        return replace(self, **filled)

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            pool=(self.pool, 0, None), width=(self.width, 1, None), depth=(self.depth, 1, None),
            dropout=(self.dropout, 0, 0.99), epochs=(self.epochs, 1, None), batch_size=(self.batch_size, 1, None),
            learning_rate=(self.learning_rate, 0, None), weight_decay=(self.weight_decay, 0, None),
            step_epochs=(self.step_epochs, 1, None), warmup_epochs=(self.warmup_epochs, 0, None),
            label_smoothing=(self.label_smoothing, 0, 1), mixup=(self.mixup, 0, None),
            cache_gigabytes=(self.cache_gigabytes, 0, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None), limit=(self.limit, 1, None), workers=(self.workers, 0, None),
            seed=(self.seed, 0, 2**31),
        )  # fmt: skip

    def training(self) -> TrainConfig:
        """The part of a resolved configuration that `fit` takes."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})


# What may differ between a run and its continuation.
_FREE = ("out", "resume", "device", "workers", "cache_gigabytes")


@dataclass
class ProbeResult:
    """What `probe` returns: the model, and metrics.json's content."""

    model: TrainedModel
    metrics: dict[str, Any]


def probe(config: ProbeConfig) -> ProbeResult:
    """Run `config` and fill its run directory.

    Raises:
        DiffLensError: anything in the configuration, the data or the backbone is not what it should be.
    """
    config = config.resolved()
    process = accelerator(config.device)
    data = load_data(config.data)
    data = replace(data, train=data.train.first(config.limit))
    backbone_config = BackboneConfig(
        config.backbone, config.num_head_channels, config.noise_schedule, config.image_size
    )
    backbone = backbone_config.load()
    extractor_config, head_config = _plan(config, backbone.defaults)
    fingerprint = backbone.fingerprint()  # before anything converts or trains its weights
    torch.manual_seed(config.seed)
    extractor = extractor_config.build(backbone)
    head = make_head(head_config, extractor.shapes(), len(data.classes))
    model = TrainedModel(
        Probe(extractor, head),
        data.classes,
        backbone_config,
        extractor_config,
        head_config,
        fingerprint,
    )
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    settings |= {"blocks": extractor.blocks, "noise_steps": extractor.noise_steps}
    run = RunDirectory(config.out, "probe", settings, config.resume, process)
    if run.finished:
        return ProbeResult(TrainedModel.load(config.out), run.read_json(FINISHED))
    with run.discard_on_error():
        return _run(config, model, data, run, process)


def _plan(config: ProbeConfig, defaults: Defaults) -> tuple[ExtractorConfig, HeadConfig]:
    """Which extractor and head a resolved configuration means on a backbone with these defaults."""
    assert config.head is not None
    several = config.head == "difformer"
    blocks = config.blocks or (defaults.fusion_blocks if several else (defaults.block,))
    steps = config.noise_steps or (defaults.fusion_noise_steps if several else (defaults.noise_step,))
    name = config.extractor or ("feedback" if config.head == "diffeed" else "frozen")
    if config.head == "diffeed" and name != "feedback":
        raise DiffLensError(f"diffeed is the attention head on the feedback extractor, not on {name}")
    extractor = ExtractorConfig(
        name, blocks, steps, config.seed, config.feedback_blocks, config.from_block, config.precision
    )
    reads_many = config.head == "diffeed" and len(blocks) * len(steps) > 1
    head: HeadName = "attention" if config.head == "diffeed" else config.head
    if reads_many:
        head = "difformer"
    pool = config.pool
    if pool is None and config.backbone.startswith("pixels"):
        pool = 0  # pooling would leave little of the images to read
    if pool is None and head in ("attention", "difformer"):
        pool = defaults.token_side
    return extractor, HeadConfig(head, pool, config.width, config.depth, config.dropout or 0.0)


def _run(
    config: ProbeConfig, model: TrainedModel, data: ImageData, run: RunDirectory, process: Accelerator
) -> ProbeResult:
    training, skipped = config.training(), list[str]()
    probe = model.probe.to(process.device)
    online = probe.extractor.trainable or training.augment != "none"
    if online and process.num_processes > 1 and training.on_bad_image == "skip":
        raise DiffLensError(
            "bad images cannot be skipped while several processes train online, since each must take as many steps: "
            "remove them, or use one process"
        )
    caches = None
    if not online:
        caches = {
            split.name: extract(probe.extractor, probe.head, split, training, process, skipped,
                                config.cache_gigabytes, config.out / "cache")
            for split in (data.train, data.test)
        }  # fmt: skip
    seconds = fit(
        probe, data.train, training, process, run, caches[data.train.name] if caches else None, skipped
    )
    evaluation = evaluate(
        probe, data.test, data.classes, training, process, caches[data.test.name] if caches else None, skipped
    )
    if process.num_processes > 1:
        skipped = sorted(set(gather_object(skipped)))
    names = set(data.train.ids)
    unread = sum(line.split(":")[0] in names for line in skipped)
    metrics = {
        **evaluation.metrics(),
        "trainable_parameters": probe.trainable_parameters,
        "train_images": len(data.train) - unread,
        "train_seconds": round(seconds, 2),
        "skipped_images": skipped,
    }
    model.info = {
        "data": data.name, "top1": round(evaluation.top1, 4), "test_images": len(evaluation.rows),
        "epochs": config.epochs, "seed": config.seed,
    }  # fmt: skip
    run.write("predictions.csv", predictions_csv(evaluation, data.test))
    run.write_folder("model", model.save)
    run.write_json(FINISHED, metrics)
    process.wait_for_everyone()
    if run.main_process:
        shutil.rmtree(config.out / "cache", ignore_errors=True)
    return ProbeResult(model, metrics)


@dataclass
class FeatureCache:
    """The maps of a split as a frozen extractor reads them, pooled as far as the head allows, float16.

    Attributes:
        maps: (N, C, H, W) by (block, noise step).
        labels: (N,) long.
        rows: (N,) long, positions in the split; images that were skipped are missing.
    """

    maps: dict[Place, Tensor]
    labels: Tensor
    rows: Tensor

    def batch(self, chosen: Tensor, device: torch.device) -> dict[Place, Tensor]:
        """Maps of the entries `chosen`, float32 on `device`."""
        return {place: maps[chosen].to(device).float() for place, maps in self.maps.items()}

    def only(self, places: list[Place]) -> "FeatureCache":
        """The same images with some of the maps, not copied."""
        return FeatureCache({place: self.maps[place] for place in places}, self.labels, self.rows)


def extract(
    extractor: Extractor,
    head: Head | int | None,
    split: ImageSplit,
    config: TrainConfig,
    process: Accelerator,
    skipped: list[str] | None = None,
    memory_gigabytes: float = 4.0,
    spill: Path | None = None,
) -> FeatureCache:
    """Read every image of `split` once; each process reads its share.

    Args:
        head: maps are pooled as far as it allows; or the side itself, None for full maps.
        skipped: receives the images that could not be read.
        memory_gigabytes: a larger cache lies in a file in the folder `spill`.

    Raises:
        DiffLensError: a feature is not finite or overflows float16.
    """
    side = head.pool if isinstance(head, Head) else head
    device = process.device
    extractor = extractor.to(device)
    rows = epoch_order(len(split), 0, 0, process.process_index, process.num_processes, shuffle=False)
    maps: dict[Place, Tensor] = {}
    labels, kept, done = [], [], 0
    with progress_bar(process.is_main_process) as bar, evaluating(extractor):
        task = bar.add_task(f"features of {split.name}", total=len(rows), note="")
        for batch in _read(extractor, split, rows, config, device, skipped, batch_size=64):
            found = extractor(to_float(batch.images), batch.index)
            here = slice(done, done + len(batch))
            for place, feature in found.items():
                pooled = pool_to(feature, side)
                if place not in maps:
                    shape = (len(rows), *pooled.shape[1:])
                    total = len(extractor.places) * math.prod(shape) * 2
                    name = f"{split.name}-{process.process_index}-b{place[0]}-t{place[1]}.bin"
                    where = spill / name if spill and total > memory_gigabytes * 1e9 else None
                    maps[place] = _room(shape, where)
                maps[place][here] = pooled.half().cpu()
                if not maps[place][here].isfinite().all():
                    raise DiffLensError(
                        f"the features of block {place[0]} at noise step {place[1]} are not finite or exceed "
                        f"float16 (largest magnitude {float(feature.abs().max()):.3g}): read another block, or "
                        "check the backbone and its image range"
                    )
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
            kept.append(batch.rows.cpu())
            done += len(batch)
            bar.update(task, advance=len(batch))
    if not done:
        raise DiffLensError(f"no image of the {split.name} split could be read")
    return FeatureCache(
        {place: values[:done] for place, values in maps.items()},
        torch.cat(labels) if labels else torch.full((done,), -1),
        torch.cat(kept),
    )


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
        run: where to log and to keep checkpoints, one an epoch.
        label: what the progress bar calls this.

    Returns:
        Seconds of training, extraction of a cache not counted.

    Raises:
        DiffLensError: the loss is no longer finite.
    """
    process = process or accelerator()
    device = process.device
    probe.to(device)
    count = len(split) if cache is None else len(cache.rows)
    # a cache holds this process's share already
    rank, world = (process.process_index, process.num_processes) if cache is None else (0, 1)
    batch_size = max(1, min(config.batch_size // process.num_processes, count))
    classes = probe.head.num_classes
    steps = math.ceil(math.ceil(count / world) / batch_size)
    if process.num_processes > 1:  # shares may differ by an image, but every process must take as many steps
        steps = max(gather_object([steps]))
    trained: nn.Module = process.prepare(probe if cache is None else probe.head)
    optimizer = make_optimizer(
        probe.parameters(), config.optimizer, config.learning_rate, config.weight_decay
    )
    rates = make_schedule(
        optimizer, config.lr_schedule, config.epochs * steps, int(config.warmup_epochs * steps),
        config.step_epochs * steps,
    )  # fmt: skip
    start, seconds = 0, 0.0
    state = run.load_checkpoint() if run else None
    if state:
        probe.load_own_state(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        start, seconds = state["epoch"], state["seconds"]
    probe.train()
    with progress_bar(process.is_main_process) as bar:
        task = bar.add_task(
            label or "training", total=config.epochs * steps, completed=start * steps, note=""
        )
        for epoch in range(start, config.epochs):
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
                inputs, target = _mix(inputs, labels, classes, config.mixup, generator)
                logits = trained(*inputs)
                loss = nn.functional.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
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
                    f"(now {config.learning_rate:g})"
                )
            bar.update(task, note=f"loss {mean:.3f}")
            if run:
                run.log({"epoch": epoch + 1, "loss": mean, "learning_rate": rates.get_last_lr()[0]})
                run.save_checkpoint({
                    "probe": probe.own_state(), "optimizer": optimizer.state_dict(),
                    "rates": rates.state_dict(), "epoch": epoch + 1, "seconds": seconds,
                })  # fmt: skip
    if not all(bool(value.isfinite().all()) for value in probe.own_state().values()):
        raise DiffLensError(f"training diverged: lower the learning rate (now {config.learning_rate:g})")
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
            for chosen in torch.arange(len(cache.rows)).split(256):
                keep(probe.head(cache.batch(chosen, device)), cache.labels[chosen], cache.rows[chosen])
        else:
            rows = epoch_order(len(split), 0, 0, process.process_index, process.num_processes, shuffle=False)
            with progress_bar(process.is_main_process) as bar:
                task = bar.add_task("evaluating", total=len(rows), note="")
                for batch in _read(probe.extractor, split, rows, config, device, skipped, batch_size=64):
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
        for chosen in order.split(batch_size):
            yield (cache.batch(chosen, device),), cache.labels[chosen].to(device)
        return
    draw = epoch + 1 if config.fresh_noise else 0
    for batch in _read(
        probe.extractor, split, order, config, device, skipped, batch_size, epoch, config.augment
    ):
        assert batch.labels is not None
        yield (to_float(batch.images), batch.index, draw), batch.labels


def _mix(
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


def _read(
    extractor: Extractor,
    split: ImageSplit,
    rows: Tensor,
    config: TrainConfig,
    device: torch.device,
    skipped: list[str] | None,
    batch_size: int,
    epoch: int = 0,
    augment: Augmentation = "none",
) -> Iterator[Any]:
    backbone = extractor.backbone
    return iterate(
        split, channels=backbone.in_channels, side=backbone.image_size, batch_size=batch_size, rows=rows,
        augment=augment, seed=config.seed, epoch=epoch, workers=config.workers,
        on_bad_image=config.on_bad_image, bad=skipped, device=device,
    )  # fmt: skip


def _room(shape: tuple[int, ...], path: Path | None) -> Tensor:
    """An empty float16 tensor, in memory or in a file."""
    if path is None:
        return torch.empty(shape, dtype=torch.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 2 * math.prod(shape)
    try:
        with path.open("wb") as file:  # a full disk shows now, not as a crash while writing to memory
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise DiffLensError(
            f"no room for {size / 1e9:.1f} GB of features in {path.parent}: {error.strerror}"
        ) from error
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float16).view(shape)


def predictions_csv(evaluation: Evaluation, split: ImageSplit) -> str:
    """One line per test image: its name, true class, predicted class and that class's probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "predicted", "probability"])
    names = evaluation.classes
    for row, label, ranked, confidence in zip(
        evaluation.rows.tolist(), evaluation.labels.tolist(), evaluation.ranked[:, 0].tolist(),
        evaluation.confidence.tolist(), strict=True,
    ):  # fmt: skip
        writer.writerow([split.ids[row], names[label], names[ranked], f"{confidence:.4f}"])
    return text.getvalue()
