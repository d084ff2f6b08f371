"""What segmentation and detection share: their settings, and a loop over iterations."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.configs.dense import DenseConfig
from difflens.configs.options import given, recorded
from difflens.data.dense.base import DenseData
from difflens.data.dense.samples import Labels, Samples
from difflens.data.images import to_float
from difflens.errors import DiffLensError, listing
from difflens.extractors.config import ExtractorConfig
from difflens.heads.pyramid import usual_blocks, usual_strides
from difflens.models.probe import DenseProbe
from difflens.run.console import progress_bar
from difflens.run.directory import RunDirectory
from difflens.run.provenance import environment
from difflens.training.optimisers import make_optimizer

_POWER = 0.9  # of the polynomial decay, as usual in segmentation


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
        given(config.extractor), blocks, steps, config.seed, config.feedback_blocks, config.from_block, config.precision,
        checkpoint=config.checkpoint_activations,
    )  # fmt: skip
    side = config.side or backbone.image_size
    backbone.check_side(side)
    _check_maps(backbone, blocks, side)
    strides = usual_strides(backbone, blocks)
    wide = max(backbone.block(index).channels for index in blocks) >= 512
    return Plan(extractor, side, strides, config.width or (256 if wide else 64))


def chosen_rows(config: DenseConfig, count: int) -> Tensor | None:
    """The training images that `image_fraction` leaves, at least one."""
    if config.image_fraction is None:
        return None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: max(1, round(config.image_fraction * count))].sort().values


Loss = Callable[[Tensor, Tensor, int, list[Labels]], dict[str, Tensor]]
"""From images (B, C, S, S) in [-1, 1], their index, the draw of the noise and their labels to the parts of the loss."""


def settings_of_run(config: DenseConfig, model: Any, data: DenseData[Any]) -> dict[str, Any]:
    """What makes a run the same run: its settings, where it reads, and the content of backbone and data."""
    extractor = model.probe.extractor
    return recorded(config) | {
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
    groups = probe.parameter_groups(
        rate, given(config.weight_decay), 1.0 if config.layer_decay is None else config.layer_decay
    )
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
    warmup = min(100, total // 10) if config.warmup_steps is None else config.warmup_steps

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
