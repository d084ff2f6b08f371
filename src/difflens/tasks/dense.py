"""What segmentation and detection share: their settings, and a loop over iterations."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from difflens.analysis.provenance import environment
from difflens.backbones.blocks import Backbone, DiffusionBackbone
from difflens.data.dense import DenseData, OnBadAnnotation
from difflens.data.images import to_float
from difflens.data.samples import Labels, Samples
from difflens.errors import DiffLensError, listing, require
from difflens.heads.pyramid import usual_blocks, usual_strides
from difflens.model import BackboneConfig, DenseProbe, ExtractorConfig, ExtractorName
from difflens.noise import ScheduleName
from difflens.runs import RunDirectory, settings_of
from difflens.training import OptimizerName, Precision, make_optimizer, progress_bar

DenseSchedule = Literal["poly", "step", "cosine", "constant"]

FREE = ("resume", "device", "checkpoint_activations", "workers", "checkpoint_minutes", "out")
"""What may differ between a run and its continuation."""

_POWER = 0.9  # of the polynomial decay, as usual in segmentation


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What to read, how to train; a field left at None takes the preset's value, or else what fits."""

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them."""
    data: Path | None = None
    """Folder of the data set, in one of the layouts that the README names."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the folder of training images and that of their masks (detect: and their JSON)."""
    val: tuple[Path, Path] | None = None
    """Likewise, of the images to evaluate on."""
    preset: str | None = None
    """A recipe of `difflens.presets`: paper-ade20k, paper-ade20k-single; to detect paper-coco."""
    extractor: ExtractorName = "frozen"
    """frozen, feedback (DifFeed), or finetuned."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read. None: the last decoder block of each of four strides; the paper's 24, 27, 30, 33 on ADM-256."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at; several are fused. None: the paper's 90 of 1000; 5 of the bundled backbone."""
    feedback_blocks: tuple[int, ...] | None = None
    """Decoder blocks that DifFeed sends back."""
    from_block: int = 1
    """The first block that `finetuned` trains."""
    layer_decay: float = 1.0
    """Of a fine-tuned backbone: each block learns at so many times the rate of the block after it."""
    side: int | None = None
    """Side of the squares that the network sees. None: what the backbone was trained on."""
    width: int | None = None
    """Channels of the head. None: 256 for maps of 512 channels and more, else 64."""
    iterations: int | None = None
    """None: 2000, to detect 3000."""
    batch_size: int | None = None
    """Images per iteration, over all processes. None: 8."""
    optimizer: OptimizerName | None = None
    """None: adamw."""
    learning_rate: float | None = None
    """None: 1e-3; of the linear head 1e-2; of a fine-tuned backbone 3e-4."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float | None = None
    """None: 0.01."""
    lr_schedule: DenseSchedule | None = None
    """Learning rate: (1 - i/n)^0.9, x0.1 at each of `step_at`, cosine to zero, or constant. None: poly, to detect step."""
    step_at: tuple[float, ...] = (0.667, 0.889)
    """Shares of the iterations; 2/3 and 8/9 are those of the usual schedules of Mask R-CNN."""
    warmup_iterations: int | None = None
    """None: 100, but at most a tenth."""
    scale: tuple[float, float] | None = None
    """Training images are scaled by a factor drawn between these, and cropped. None: 0.5 2, to detect 0.8 1.25."""
    flip: bool = True
    """Mirror every second training image."""
    fresh_noise: bool = True
    """Draw new noise in every iteration."""
    label_fraction: float | None = None
    """Train on this share of the images, drawn by the seed."""
    on_bad_annotation: OnBadAnnotation = "error"
    """What to do with annotations that cannot be right."""
    precision: Precision = "float32"
    """Of a frozen backbone."""
    checkpoint_activations: bool = False
    """feedback: compute the second pass again in the backward pass: slower, in less memory."""
    num_head_channels: int = 64
    """Channels per attention head of an OpenAI checkpoint, which its weights do not show."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Side of the images that the backbone was trained on, where nothing says so."""
    checkpoint_minutes: float = 5.0
    """Write a checkpoint if the last one is this old."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    seed: int = 0
    """Of weights, order, augmentation and noise."""
    resume: bool = False
    """Go on with what is in the run directory."""

    def filled(self, presets: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]) -> Self:
        """With every None that the preset or the defaults know filled in; DiffLensError for what is out of range."""
        if self.preset is not None and self.preset not in presets:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets))}")
        recipe = {
            "learning_rate": 3e-4 if self.extractor == "finetuned" else 1e-3,
            **defaults,
            **(presets[self.preset] if self.preset else {}),
        }
        full = replace(self, **{key: value for key, value in recipe.items() if getattr(self, key) is None})
        idle = [
            option
            for option, extractor, asked in (
                ("--layer-decay", "finetuned", full.layer_decay != 1),
                ("--from-block", "finetuned", full.from_block != 1),
                ("--feedback-blocks", "feedback", full.feedback_blocks is not None),
            )
            if asked and full.extractor != extractor
        ]
        if idle:
            raise DiffLensError(
                f"the {full.extractor} extractor has no use for {listing(idle)}: leave that out"
            )
        if not all(0 <= at <= 1 for at in full.step_at):
            raise DiffLensError(
                f"--step-at takes shares of the iterations, such as 0.667 0.889, not {listing(full.step_at)}"
            )
        low, high = full.scale or (1.0, 1.0)
        require(
            iterations=(full.iterations, 1, None), batch_size=(full.batch_size, 1, None), side=(full.side, 1, None),
            learning_rate=(full.learning_rate, 0, None), weight_decay=(full.weight_decay, 0, None),
            momentum=(full.momentum, 0, 1), warmup_iterations=(full.warmup_iterations, 0, None),
            width=(full.width, 1, None), smallest_scale=(low, 0.05, 1), largest_scale=(high, low, 20),
            label_fraction=(full.label_fraction, 0, 1), layer_decay=(full.layer_decay, 0, 1),
            workers=(full.workers, 0, None), checkpoint_minutes=(full.checkpoint_minutes, 0, None),
            seed=(full.seed, 0, 2**31),
        )  # fmt: skip
        if (full.data is None) == (full.train is None) or (full.train is None) != (full.val is None):
            raise DiffLensError("name the data: a folder with --data, or folders with both --train and --val")
        return full

    def load_backbone(self) -> tuple[BackboneConfig, Backbone]:
        config = BackboneConfig.of(self, self.backbone)
        return config, config.load()

    def plan(self, backbone: Backbone) -> "Plan":
        """What the settings mean on a backbone; DiffLensError if it has no such place, or cannot take such images."""
        blocks = backbone.check_blocks(self.blocks or usual_blocks(backbone))
        steps = self.noise_steps or (min(backbone.defaults.fusion_noise_steps),)
        extractor = ExtractorConfig(
            self.extractor,
            blocks,
            steps,
            self.seed,
            self.feedback_blocks,
            self.from_block,
            self.precision,
            checkpoint=self.checkpoint_activations,
        )
        side = self.side or backbone.image_size
        backbone.check_side(side)
        _check_maps(backbone, blocks, side)
        strides = usual_strides(backbone, blocks)
        wide = max(backbone.block(index).channels for index in blocks) >= 512
        return Plan(extractor, side, strides, self.width or (256 if wide else 64))

    def rows(self, count: int) -> Tensor | None:
        """The training images that `label_fraction` leaves, at least one."""
        if self.label_fraction is None:
            return None
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return order[: max(1, round(self.label_fraction * count))].sort().values


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


def fit_iterations(
    probe: DenseProbe,
    samples: Samples,
    loss: Callable[[torch.nn.Module], Loss],
    config: DenseConfig,
    process: Accelerator,
    run: RunDirectory,
) -> float:
    """Train `probe` in place for `config.iterations` batches.

    What a batch holds, its augmentation and its noise are functions of the seed and the iteration, so a run that
    resumes from `run`'s checkpoint ends as an uninterrupted one does.

    Args:
        loss: makes the loss from the module to train, which several processes have wrapped.

    Returns:
        Seconds of training.

    Raises:
        DiffLensError: the loss is no longer finite.
    """
    total, batch_size, rate = given(config.iterations), given(config.batch_size), given(config.learning_rate)
    if batch_size % process.num_processes:
        raise DiffLensError(f"batch-size {batch_size} is not a multiple of {process.num_processes} processes")
    probe.to(process.device).train()
    compute = loss(process.prepare(probe))
    groups = probe.parameter_groups(rate, given(config.weight_decay), config.layer_decay)
    optimizer = make_optimizer(given(config.optimizer), *groups, momentum=config.momentum)
    rates = LambdaLR(optimizer, learning_rate_factor(config))
    start, seconds = 0, 0.0
    state = run.load_checkpoint()
    if state:
        probe.load_own_state(state["probe"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        start, seconds = state["iteration"], state["seconds"]
    every = max(1, min(50, total // 20))
    begun = kept = time.monotonic()
    sums: dict[str, Tensor] = {}
    rank, world = process.process_index, process.num_processes
    batches = samples.training(start, total, batch_size, rank, world)
    with progress_bar(process.is_main_process) as bar:
        task = bar.add_task("training", total=total, completed=start, note="")
        for done, (rows, images, labels) in enumerate(batches, start=start + 1):
            # of dropout and of the regions that are sampled
            torch.manual_seed(config.seed * 1_000_003 + done * world + rank)
            parts = compute(
                to_float(torch.stack(images).to(process.device)),
                samples.split.index[rows].to(process.device),
                done if config.fresh_noise else 0,
                [{key: value.to(process.device) for key, value in each.items()} for each in labels],
            )
            optimizer.zero_grad(set_to_none=True)
            process.backward(torch.stack([*parts.values()]).sum())
            optimizer.step()
            rates.step()
            sums = {name: part.detach() + sums.get(name, 0) for name, part in parts.items()}
            bar.update(task, advance=1)
            if done % every and done < total:
                continue
            count = (done - 1) % every + 1
            means = {name: float(process.reduce(part, "mean")) / count for name, part in sums.items()}
            mean, sums = sum(means.values()), {}
            if not math.isfinite(mean):
                raise DiffLensError(
                    f"the loss is no longer finite at iteration {done}: lower the learning rate (now {rate:g}); "
                    f"the last good checkpoint, if there is one, is {run.checkpoint_path}"
                )
            bar.update(task, note=f"loss {mean:.3f}")
            shown = means if len(means) > 1 else {}
            run.log({"iteration": done, "loss": mean, **shown, "learning_rate": rates.get_last_lr()[0]})
            now = time.monotonic()
            if done == total or now - kept > 60 * config.checkpoint_minutes:
                kept = now
                run.save_checkpoint({
                    "probe": probe.own_state(), "optimizer": optimizer.state_dict(), "rates": rates.state_dict(),
                    "iteration": done, "seconds": seconds + now - begun,
                })  # fmt: skip
    if process.num_processes > 1:  # each process kept its own batch statistics
        for buffer in probe.buffers():
            broadcast(buffer)
    return seconds + time.monotonic() - begun


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


def learning_rate_factor(config: DenseConfig) -> Callable[[int], float]:
    """What the learning rate is multiplied by, by iteration: linear warm-up, then `lr_schedule`."""
    total = given(config.iterations)
    warmup = min(100, total // 10) if config.warmup_iterations is None else config.warmup_iterations

    def factor(iteration: int) -> float:
        share = min(1.0, iteration / total)
        if iteration < warmup:
            return (iteration + 1) / warmup
        if config.lr_schedule == "poly":
            return float((1 - share) ** _POWER)
        if config.lr_schedule == "step":
            return float(0.1 ** sum(share >= at for at in config.step_at))
        return 0.5 * (1 + math.cos(math.pi * share)) if config.lr_schedule == "cosine" else 1.0

    return factor
