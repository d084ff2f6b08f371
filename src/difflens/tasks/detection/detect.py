"""`difflens detect`: objects with boxes and masks, from a pyramid of features."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.backbones.config import BackboneConfig
from difflens.choices import DetectionHeadName
from difflens.configs.detect import DetectConfig
from difflens.data.dense.base import DenseData, Objects
from difflens.data.dense.coco import ObjectSplit, load_annotations, load_coco, mask_tools
from difflens.data.dense.samples import DenseAugmentation, Labels, Samples
from difflens.errors import DiffLensError
from difflens.heads.config import DetectionHeadConfig
from difflens.metrics.detection import coco_metrics
from difflens.models.saved import DetectionModel
from difflens.reports.dense import Example, dense_report, detection_sections
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
from difflens.tasks.detection.inference import detections, evaluate_detection
from difflens.training.loop import TrainingLoop

SURE = 0.5
"""Objects with at least this score are drawn."""

_EXAMPLES = 6


@dataclass(frozen=True)
class DetectResult:
    """What a run found: the trained model, and "box_ap" and the other figures of `coco_metrics`."""

    model: DetectionModel
    metrics: dict[str, Any]


def detect(config: DetectConfig) -> DetectResult:
    """Run `config`: train, evaluate once, and write the run directory, with results.json in COCO's format.

    Raises:
        DiffLensError: bad data, a backbone that cannot take images of this size, or a folder that holds another run.
    """
    config = config.resolved()
    mask_tools()
    process = accelerator(config.device)
    backbone_config = BackboneConfig.of(config, config.backbone)
    backbone = backbone_config.load()
    fingerprint = backbone.fingerprint()
    plan = make_plan(config, backbone)
    if plan.side % plan.strides[-1]:
        raise DiffLensError(
            f"side {plan.side} is no multiple of {plan.strides[-1]}, the stride of the coarsest level that the head reads: "
            f"take --side {max(1, round(plan.side / plan.strides[-1])) * plan.strides[-1]}"
        )
    data = _load(config)
    both = data.train.has_masks and data.val.has_masks
    if config.head == "mask-rcnn" and not both:
        raise DiffLensError(
            "Mask R-CNN learns from masks, and the objects have none: take --head faster-rcnn"
        )
    name: DetectionHeadName = config.head or ("mask-rcnn" if both else "faster-rcnn")
    head = DetectionHeadConfig(name, plan.side, plan.strides, plan.width, given(config.proposals))
    torch.manual_seed(config.seed)
    probe = DetectionModel.make(plan.extractor.build(backbone), head, len(data.classes))
    model = DetectionModel(probe, data.classes, backbone_config, plan.extractor, head, fingerprint)
    record = settings_of_run(config, model, data)
    run = RunDirectory(config.out, "detect", record, config.resume, process)
    with run.working(), enough_memory():
        if run.finished:
            return DetectResult(DetectionModel.load(config.out), run.read_json(FINISHED))
        return _train_and_evaluate(config, model, data, run, process)


def _load(config: DetectConfig) -> DenseData[ObjectSplit]:
    if config.data is not None:
        data = load_coco(config.data.expanduser(), config.on_bad_annotation)
    else:
        data = load_annotations(given(config.train), given(config.val), config.on_bad_annotation)
    for split in (data.train, data.val):
        if not any(split.objects):
            raise DiffLensError(f"the {split.name} images of {data.name} show no objects")
    return data


def _train_and_evaluate(
    config: DetectConfig,
    model: DetectionModel,
    data: DenseData[ObjectSplit],
    run: RunDirectory,
    process: Accelerator,
) -> DetectResult:
    probe, side, masks = model.probe, model.head.side, model.head.name == "mask-rcnn"
    channels = probe.extractor.backbone.in_channels
    augmentation = DenseAugmentation(side, True, given(config.scale), config.flip)
    rows = labelled_rows(config, len(data.train))
    training = Samples(
        data.train,
        partial(data.train.target, masks=masks),
        channels,
        augmentation,
        config.seed,
        rows,
        config.workers,
    )
    validation = Samples(data.val, _nothing, channels, workers=config.workers)
    objective = DenseObjective(probe, training, _loss, config, process)
    seconds = TrainingLoop(objective, objective.pace(), process, run).train()
    results = evaluate_detection(probe, validation, side, process)
    used = range(len(data.train)) if rows is None else rows.tolist()
    metrics = {
        **coco_metrics(data.val.record, results, masks),
        "train_images": len(training),
        "train_negatives": sum(not data.train.objects[row] for row in used),
        "val_images": len(validation),
        "trainable_parameters": probe.trainable_parameters,
        "iterations": config.iterations,
        "train_seconds": round(seconds, 2),
        "seed": config.seed,
        "bad_annotations": list(data.bad),
    }
    aps: dict[str, float] = {key: round(metrics[key], 4) for key in ("box_ap", "mask_ap") if key in metrics}
    model.info = {
        "data": data.name, **aps, "train_images": len(training), "iterations": config.iterations, "seed": config.seed,
    }  # fmt: skip
    run.write("results.json", json.dumps(results) + "\n")
    run.write_folder("model", model.save)
    if run.main_process:
        kind, ap = list(aps.items())[-1]
        run.write("report.html", dense_report(
            title=f"Detection: {kind.removesuffix('_ap')} AP {100 * ap:.2f} %",
            command=shown_command("detect", config),
            summary=f"{model.head.name} on the {config.extractor} features of {config.backbone}, trained on "
            f"{len(training):,} images of {data.name} for {config.iterations:,} iterations.",
            sections=detection_sections(
                metrics, run.read_log(), _examples(model, data.val, validation, process), data.classes
            ),
            provenance=provenance(config, model, data, process),
        ))  # fmt: skip
    run.write_json(FINISHED, metrics)
    process.wait_for_everyone()
    return DetectResult(model, metrics)


def _examples(
    model: DetectionModel, split: ObjectSplit, samples: Samples, process: Accelerator
) -> list[Example]:
    rows = range(len(split))[:_EXAMPLES]
    examples = []
    for row, found in detections(model.probe, samples, model.head.side, process, rows):
        target = split.target(row, split.has_masks)
        true = Objects(target["boxes"], target["labels"], None, target.get("masks"))
        examples.append(Example(split.ids[row], split.image(row), true, sure(found)))
    return examples


def sure(objects: Objects) -> Objects:
    """Those with a score of at least `SURE`."""
    assert objects.scores is not None
    kept = objects.scores >= SURE
    masks = None if objects.masks is None else objects.masks[kept]
    return Objects(objects.boxes[kept], objects.labels[kept], objects.scores[kept], masks)


def _nothing(row: int) -> Labels:
    return {}


def _loss(module: nn.Module) -> Loss:
    def loss(images: Tensor, index: Tensor, draw: int, labels: list[Labels]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = module(images, index, draw, targets=labels)
        return {name.removeprefix("loss_"): value for name, value in losses.items()}

    return loss
