"""`difflens segment`: a class for every pixel, from a pyramid of features."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.backbones.config import BackboneConfig
from difflens.configs.segment import SegmentConfig
from difflens.data.dense.base import IGNORED, DenseData
from difflens.data.dense.masks import MaskSplit, load_masks, load_pairs
from difflens.data.dense.samples import DenseAugmentation, Labels, Samples
from difflens.errors import DiffLensError
from difflens.heads.config import SegmentationHeadConfig
from difflens.models.saved import SegmentationModel
from difflens.reports.dense import Example, dense_report, segmentation_sections
from difflens.run.commands import shown_command
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.processes import accelerator
from difflens.tasks.dense import (
    DenseObjective,
    Loss,
    enough_memory,
    given,
    labelled_rows,
    make_plan,
    provenance,
    settings_of_run,
)
from difflens.tasks.segmentation.inference import Sliding, evaluate_segmentation, predictions
from difflens.training.loop import TrainingLoop

_EXAMPLES = 6


@dataclass(frozen=True)
class SegmentResult:
    """What a run found: the trained model, and "miou" and the other figures of `SegmentationEvaluation.metrics`."""

    model: SegmentationModel
    metrics: dict[str, Any]


def segment(config: SegmentConfig) -> SegmentResult:
    """Run `config`: train, evaluate once, and write the run directory.

    Raises:
        DiffLensError: bad data, a backbone that cannot take images of this size, or a folder that holds another run.
    """
    config = config.resolved()
    process = accelerator(config.device)
    least = 2 * process.num_processes
    if config.head == "upernet" and given(config.batch_size) < least:
        raise DiffLensError(
            f"UPerNet normalises over the images of a process: give --batch-size {least} or more, or --head linear"
        )
    backbone_config = BackboneConfig.of(config, config.backbone)
    backbone = backbone_config.load()
    fingerprint = backbone.fingerprint()
    plan = make_plan(config, backbone)
    data = _load(config)
    head = SegmentationHeadConfig(config.head, plan.side, plan.strides, plan.width)
    torch.manual_seed(config.seed)
    probe = SegmentationModel.make(plan.extractor.build(backbone), head, len(data.classes))
    model = SegmentationModel(probe, data.classes, backbone_config, plan.extractor, head, fingerprint)
    record = settings_of_run(config, model, data)
    run = RunDirectory(config.out, "segment", record, config.resume, process)
    with run.working(), enough_memory():
        if run.finished:
            return SegmentResult(SegmentationModel.load(config.out), run.read_json(FINISHED))
        return _train_and_evaluate(config, model, data, run, process)


def _load(config: SegmentConfig) -> DenseData[MaskSplit]:
    if config.data is not None:
        return load_masks(config.data.expanduser(), config.on_bad_annotation)
    return load_pairs(given(config.train), given(config.val), given(config.classes), config.on_bad_annotation)


def _mask(split: MaskSplit, row: int) -> Labels:
    return {"mask": split.mask(row)}


def _train_and_evaluate(
    config: SegmentConfig,
    model: SegmentationModel,
    data: DenseData[MaskSplit],
    run: RunDirectory,
    process: Accelerator,
) -> SegmentResult:
    probe, side = model.probe, model.head.side
    channels = probe.extractor.backbone.in_channels
    augmentation = DenseAugmentation(side, False, given(config.scale), config.flip, fill=IGNORED)
    training = Samples(
        data.train, partial(_mask, data.train), channels, augmentation, config.seed, labelled_rows(config, len(data.train)),
        config.workers,
    )  # fmt: skip
    validation = Samples(data.val, partial(_mask, data.val), channels, workers=config.workers)
    objective = DenseObjective(probe, training, _loss, config, process)
    seconds = TrainingLoop(objective, objective.pace(), process, run).train()
    sliding = Sliding(side, config.eval_scales, config.eval_flip)
    evaluation = evaluate_segmentation(probe, validation, data.classes, sliding, process)
    metrics = {
        **evaluation.metrics(),
        "train_images": len(training),
        "val_images": len(validation),
        "trainable_parameters": probe.trainable_parameters,
        "iterations": config.iterations,
        "train_seconds": round(seconds, 2),
        "seed": config.seed,
        "bad_annotations": list(data.bad),
    }
    model.info = {
        "data": data.name, "miou": round(metrics["miou"], 4), "train_images": len(training),
        "iterations": config.iterations, "seed": config.seed,
    }  # fmt: skip
    run.write_folder("model", model.save)
    if run.main_process:
        examples = [
            Example(data.val.ids[row], data.val.image(row), true, predicted)
            for row, predicted, true in predictions(
                probe, validation, sliding, process, range(len(data.val))[:_EXAMPLES]
            )
        ]
        run.write("report.html", dense_report(
            title=f"Segmentation: {100 * metrics['miou']:.2f} % mIoU",
            command=shown_command("segment", config),
            summary=f"{config.head} on the {config.extractor} features of {config.backbone}, trained on "
            f"{len(training):,} images of {data.name} for {config.iterations:,} iterations.",
            sections=segmentation_sections(metrics, run.read_log(), examples, data.classes),
            provenance=provenance(config, model, data, process),
        ))  # fmt: skip
    run.write_json(FINISHED, metrics)
    process.wait_for_everyone()
    return SegmentResult(model, metrics)


def _loss(module: nn.Module) -> Loss:
    def loss(images: Tensor, index: Tensor, draw: int, labels: list[Labels]) -> dict[str, Tensor]:
        logits = module(images, index, draw, size=tuple(images.shape[-2:]))
        masks = torch.stack([each["mask"] for each in labels]).long()
        total = nn.functional.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
        # a batch may show nothing that has a class
        return {"pixels": total / (masks != IGNORED).sum().clamp(min=1)}

    return loss
