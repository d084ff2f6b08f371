"""The run that `segment` and `detect` share; a `DenseTask` has the parts in which they differ."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.configs.command_line import shown_command
from difflens.configs.dense import DenseConfig
from difflens.configs.options import given
from difflens.data.changes import changes, say_changes
from difflens.data.copies import copies
from difflens.data.dense.base import DenseData
from difflens.data.dense.samples import DenseAugmentation, Labels, Samples
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted, named, plural
from difflens.extractors.base import evaluating
from difflens.extractors.config import ExtractorConfig
from difflens.heads.pyramid import usual_blocks, usual_strides
from difflens.models.probe import DenseProbe
from difflens.models.saved import DetectionModel, SegmentationModel
from difflens.opening import open_run, with_backbone
from difflens.processes.base import in_words
from difflens.reports.dense import dense_report
from difflens.reports.html import BACKBONE_REPORT, Section, report_of
from difflens.results.dense import Example
from difflens.run.console import note, progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment
from difflens.run.reading import reason
from difflens.tasks.objectives import DenseObjective, Loss
from difflens.training.loop import TrainingLoop
from difflens.training.objectives import micro_batch

EXAMPLES = 6
"""The number of validation images in a report."""

_HEADS = {
    "upernet": "UPerNet",
    "linear": "A linear head",
    "mask-rcnn": "Mask R-CNN",
    "faster-rcnn": "Faster R-CNN",
}

C = TypeVar("C", bound=DenseConfig)
S = TypeVar("S", bound=FileSplit)
M = TypeVar("M", SegmentationModel, DetectionModel)
R = TypeVar("R")


def check_maps(backbone: Backbone, blocks: tuple[int, ...], side: int) -> None:
    """Raise DiffLensError if a network that is no U-Net, such as a transformer, cannot read images of
    `side`."""
    if backbone.of_role("decoder") or side == backbone.image_size:
        return
    backbone.require_memory(1, blocks, side)
    channels, *_ = backbone.latent_shape or (backbone.in_channels,)
    length = side // backbone.input_stride
    try:
        with torch.no_grad():
            x_t = torch.zeros(1, channels, length, length, device=backbone.device)
            maps = backbone.features(x_t, backbone.defaults.noise_step, blocks)
    except Exception as error:  # each family of networks refuses sizes in its own way
        raise DiffLensError(
            f"{backbone.spec} does not take images of side {side} ({reason(error)}): leave --side at "
            f"{backbone.image_size}, or say with --image-size what the network is to be made for"
        ) from error
    for index, each in maps.items():
        if each.shape[-1] * backbone.block(index).stride != side:
            raise DiffLensError(
                f"block {index} of {backbone.spec} gives a map of side {each.shape[-1]} for images of side "
                f"{side}, which is not its stride, {backbone.block(index).stride}: choose another --side"
            )


@dataclass(frozen=True)
class Plan:
    """The extractor and the shape of the head.

    Attributes:
        extractor: the extractor, with the places that are read.
        side: the side of the squares that the network reads, in pixels.
        strides: the strides of the pyramid's levels.
        width: the channels of the head.
    """

    extractor: ExtractorConfig
    side: int
    strides: tuple[int, ...]
    width: int


def make_plan(config: DenseConfig, backbone: Backbone) -> Plan:
    """Return the plan of a configuration on a backbone.

    Raises:
        DiffLensError: the backbone has no such place, or cannot read images of this size.
    """
    blocks = backbone.check_blocks(config.blocks or usual_blocks(backbone))
    least, *_ = backbone.process.by_noise(backbone.defaults.fusion_noise_steps)
    steps = config.noise_steps or (least,)
    extractor = ExtractorConfig(
        given(config.extractor),
        blocks,
        steps,
        config.seed,
        config.feedback_blocks,
        config.from_block,
        config.decided_precision,
        checkpoint=config.checkpoint_activations,
    )
    side = config.side or backbone.image_size
    backbone.check_size(side)
    check_maps(backbone, blocks, side)
    strides = usual_strides(backbone, blocks)
    wide = max(backbone.block(index).channels for index in blocks) >= 512
    return Plan(extractor, side, strides, config.width or (256 if wide else 64))


def chosen_rows(config: DenseConfig, count: int) -> Tensor | None:
    """Return (M,) long: the training images that `image_fraction` chooses, at least one; None: all."""
    if config.image_fraction is None:
        return None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    return order[: max(1, round(config.image_fraction * count))].sort().values


def evaluation_batches(
    probe: DenseProbe, samples: Samples, batch_size: int, process: Accelerator, rows: Sequence[int] | None
) -> Iterator[tuple[list[int], list[Tensor], list[Labels]]]:
    """Yield batches of whole images, while `probe` is in evaluation mode on the device of `process`.

    Args:
        rows: positions to read; None: this process's share of all images.

    Yields:
        Positions, images uint8 (C, H, W) on the device, labels.
    """
    mine = range(process.process_index, len(samples), process.num_processes) if rows is None else rows
    probe.to(process.device)
    with evaluating(probe), progress_bar(process.is_main_process and rows is None) as bar:
        task = bar.add_task("evaluating", total=len(mine), note="")
        for batch, images, labels in samples.all(torch.tensor(mine), batch_size):
            yield batch, [image.to(process.device) for image in images], labels
            bar.update(task, advance=len(batch))


class DenseTask(ABC, Generic[C, S, M]):
    """The part of a run that depends on the task.

    Args:
        config: the resolved options.

    Attributes:
        model_kind: the class of the trained model.
        scores: the metrics that the model card names, if they exist.
        sections: gives the sections of the report from metrics, log, examples and classes.
        whole, fill: the settings of `DenseAugmentation`.
    """

    model_kind: type[M]
    scores: ClassVar[tuple[str, ...]]
    sections: ClassVar[Callable[..., list[Section]]]
    whole: ClassVar[bool]
    fill: ClassVar[int] = 0

    def __init__(self, config: C):
        self.config = config

    @abstractmethod
    def load(self) -> DenseData[S]:
        """Load the data to train and to evaluate on."""

    @abstractmethod
    def head(self, plan: Plan, data: DenseData[S] | None) -> Any:
        """Return the configuration of the head; raise DiffLensError if plan or data do not suit it.

        Args:
            data: None for a published set that is not on this machine, whose labels suit every head.
        """

    @abstractmethod
    def labels(self, model: M, split: S, train: bool) -> Callable[[int], Labels]:
        """Return a function that gives the labels of a position in a split, to train on or to evaluate
        with."""

    @abstractmethod
    def loss(self, module: nn.Module) -> Loss:
        """Return the loss of the module to train, which accelerate has wrapped."""

    def require_memory(self, head: Any, data: DenseData[S]) -> None:
        """Raise DiffLensError if main memory does not hold what the evaluation of an image takes.

        Args:
            head: the configuration of the head.
        """

    def facts(self, data: DenseData[S]) -> dict[str, Any]:
        """Return what the saved model has to know about the data besides its classes."""
        return {}

    @abstractmethod
    def evaluate(
        self,
        model: M,
        data: DenseData[S],
        training: Samples,
        validation: Samples,
        run: RunDirectory,
        process: Accelerator,
    ) -> dict[str, Any]:
        """Predict each validation image once; return the metrics."""

    @abstractmethod
    def headline(self, metrics: dict[str, Any]) -> str:
        """Return the title of the report."""

    @abstractmethod
    def examples(
        self, model: M, data: DenseData[S], validation: Samples, process: Accelerator
    ) -> list[Example]:
        """Return `EXAMPLES` validation images, evenly spaced, with their predictions."""


def run_dense(
    task: DenseTask[C, S, M], process: Accelerator, result: Callable[[dict[str, Any], Path, M], R]
) -> R:
    """Train, evaluate once, and write the run directory; return the result.

    Args:
        result: makes it of metrics, run directory and model.

    Raises:
        DiffLensError: bad data, a backbone that cannot take images of this size, or a folder that holds
            another run.
    """
    data = task.load()
    if not task.config.fresh_noise:
        data.val.use_test_noise()  # fresh noise in training is never that of the evaluation
    task.config = config = with_backbone(task.config, data.train)
    for line in data.notes:
        note(line)
    opened = open_run(config, data, process=process)
    plan = make_plan(config, opened.backbone)
    if process.device.type == "cpu":
        batch = micro_batch(given(config.batch_size), process.num_processes, config.accumulate)
        opened.backbone.require_memory(batch, plan.extractor.blocks, plan.side)
    say_changes(data.train, opened.backbone.spec, opened.backbone.in_channels, plan.side, task.whole)
    head = task.head(plan, data)
    if process.device.type == "cpu":
        task.require_memory(head, data)
    torch.manual_seed(config.seed)
    extractor = plan.extractor.build(opened.backbone)
    probe = task.model_kind.make(extractor, head, len(data.classes))
    model = task.model_kind(
        probe,
        data.classes,
        opened.backbone_config,
        plan.extractor,
        head,
        opened.fingerprints["backbone_fingerprint"],
    )
    identity = {"blocks": extractor.blocks, "noise_steps": extractor.noise_steps}
    with opened.directory(identity) as run:
        if run.finished:
            model = task.model_kind.load(config.out)
            return run.read_json(FINISHED, lambda metrics: result(metrics, config.out, model))
        run.track(config.log)
        return result(_train_and_evaluate(task, model, data, run, process), config.out, model)


def spread(count: int) -> list[int]:
    """Return the positions of `EXAMPLES` of `count` images, evenly spaced; of all if there are fewer."""
    shown = min(EXAMPLES, count)
    return [k * count // shown for k in range(shown)]


def _train_and_evaluate(
    task: DenseTask[C, S, M], model: M, data: DenseData[S], run: RunDirectory, process: Accelerator
) -> dict[str, Any]:
    config, probe = task.config, model.probe
    channels = probe.extractor.backbone.in_channels
    # train
    augmentation = DenseAugmentation(
        model.head.side, task.whole, given(config.scale), config.augment == "flip", task.fill
    )
    training = Samples(
        data.train,
        task.labels(model, data.train, train=True),
        channels,
        augmentation,
        config.seed,
        chosen_rows(config, len(data.train)),
        config.workers,
    )
    objective = DenseObjective(probe, training, task.loss, config, process)
    minutes = config.checkpoint_minutes
    title = f"{model.head.name} on {config.backbone}, seed {config.seed}"
    seconds = TrainingLoop(objective, process, run, title, checkpoint_seconds=60 * minutes).train()
    # evaluate
    labels = task.labels(model, data.val, train=False)
    validation = Samples(data.val, labels, channels, workers=config.workers)
    metrics = {
        **task.evaluate(model, data, training, validation, run, process),
        "train_images": len(training),
        "val_images": len(validation),
        "trainable_parameters": probe.trainable_parameters,
        "iterations": config.iterations,
        "train_seconds": round(seconds, 2),
        "seed": config.seed,
        "bad_annotations": list(data.bad),
    }
    # write model and report
    model.info = {
        "data": data.name,
        **{key: round(metrics[key], 4) for key in task.scores if key in metrics},
        "train_images": len(training),
        "iterations": config.iterations,
        "seed": config.seed,
        **({} if config.exif == "apply" else {"exif": config.exif}),
        **task.facts(data),
    }
    run.trackers.results({f"val/{key}": metrics.get(key) for key in task.scores})
    run.write_folder("model", model.save)
    if run.main_process:
        examples = task.examples(model, data, validation, process)
        run.write(
            "report.html",
            dense_report(
                title=task.headline(metrics),
                command=shown_command(config),
                summary=f"{_HEADS[model.head.name]} on the {config.extractor} features of {config.backbone}, "
                f"trained on {counted(len(training), 'image')} of {data.name} for "
                f"{counted(given(config.iterations), 'iteration')}.",
                sections=task.sections(metrics, run.read_log(), examples, data.classes),
                provenance=provenance(config, model, data, process),
            ),
        )
    run.write_json(FINISHED, metrics)
    process.wait_for_everyone()
    return metrics


def provenance(
    config: DenseConfig, model: Any, data: DenseData[Any], process: Accelerator
) -> dict[str, object]:
    """Return the rows of the last table of a dense report."""
    extractor = model.probe.extractor
    steps = in_words(extractor.backbone.process.by_noise(extractor.noise_steps))
    whole = isinstance(model, DetectionModel)
    found = changes(data.train, extractor.backbone.in_channels, model.head.side, whole)
    known = copies(data.train, data.val)
    return {
        "Backbone": f"{config.backbone}, fingerprint {model.fingerprint[:12]}",
        **report_of(config.out, BACKBONE_REPORT, given(config.backbone)),
        "Places read": f"{named('block', extractor.blocks)} at "
        f"{plural('noise step', len(extractor.noise_steps))} {steps}, "
        f"{config.extractor} extractor, {plural('level', len(model.head.strides))} of "
        f"{named('stride', model.head.strides)}, "
        f"{model.head.side} pixels",
        **extractor.backbone.facts(),
        "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}, "
        f"{counted(len(data.bad), 'bad annotation')} left "
        "out",
        **({"Images as read": found} if found else {}),
        **({"Copies": known} if known else {}),
        "Seed": config.seed,
        **environment(process.device),
    }
