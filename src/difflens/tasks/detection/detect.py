"""`difflens detect`: trains Mask R-CNN (He et al., 2017) on a pyramid of features."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from difflens.choices import DetectionHeadName
from difflens.configs.detect import DetectConfig
from difflens.configs.options import given, resolve
from difflens.data.dense.base import DenseData, Objects
from difflens.data.dense.coco import load_annotations, load_coco
from difflens.data.dense.objects import ObjectSplit
from difflens.data.dense.run_lengths import mask_tools
from difflens.data.dense.samples import Labels, Samples
from difflens.errors import DiffLensError, expanded
from difflens.heads.config import DetectionHeadConfig
from difflens.metrics.detection import coco_metrics
from difflens.models.saved import DetectionModel
from difflens.reports.dense import detection_sections
from difflens.results.dense import Example
from difflens.results.detect import DetectResult
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator
from difflens.tasks.dense import (
    DenseTask,
    Plan,
    run_dense,
    spread,
)
from difflens.tasks.detection.inference import detections, evaluate_detection
from difflens.tasks.objectives import Loss

SURE = 0.5
"""The lowest score of objects that pictures show."""


def detect(config: DetectConfig) -> DetectResult:
    """Run `config`: train, evaluate once, and write the run directory, with results.json in COCO's format.

    Raises:
        DiffLensError: bad data, a backbone that cannot take images of this size, or a folder that holds
            another run.
    """
    config = resolve(config)
    mask_tools()
    return run_dense(Detection(config), accelerator(config.device), DetectResult.from_metrics)


class Detection(DenseTask[DetectConfig, ObjectSplit, DetectionModel]):
    """The losses of Mask R-CNN or Faster R-CNN; COCO's average precision."""

    model_kind, scores = DetectionModel, ("box_ap", "mask_ap")
    sections = staticmethod(detection_sections)
    whole = True

    def load(self) -> DenseData[ObjectSplit]:
        config = self.config
        reading: dict[str, Any] = {
            "on_bad": config.on_bad_annotation,
            "exif": config.exif,
            "masks": config.head != "faster-rcnn",
        }
        if config.data is not None:
            data = load_coco(expanded(config.data), **reading)
        else:
            data = load_annotations(given(config.train), given(config.val), **reading)
        for split in (data.train, data.val):
            if not len(split.table.order):
                raise DiffLensError(f"the {split.name} images of {data.name} show no objects")
        return data

    def head(self, plan: Plan, data: DenseData[ObjectSplit] | None) -> DetectionHeadConfig:
        if plan.side % plan.strides[-1]:
            raise DiffLensError(
                f"side {plan.side} is no multiple of {plan.strides[-1]}, the stride of the coarsest level "
                "that the head reads: take --side "
                f"{max(1, round(plan.side / plan.strides[-1])) * plan.strides[-1]}"
            )
        both = data is None or (data.train.has_masks and data.val.has_masks)
        if self.config.head == "mask-rcnn" and not both:
            raise DiffLensError(
                "Mask R-CNN learns from masks, and the objects have none: take --head faster-rcnn"
            )
        name: DetectionHeadName = self.config.head or ("mask-rcnn" if both else "faster-rcnn")
        proposals = given(self.config.proposals)
        return DetectionHeadConfig(name, plan.side, plan.strides, plan.width, proposals, self.config.mix)

    def labels(self, model: DetectionModel, split: ObjectSplit, train: bool) -> Callable[[int], Labels]:
        return partial(split.target, masks=_masks(model)) if train else _nothing

    def loss(self, module: nn.Module) -> Loss:
        def loss(images: Tensor, index: Tensor, draw: int, labels: list[Labels]) -> dict[str, Tensor]:
            losses: dict[str, Tensor] = module(images, index, draw, targets=labels)
            return {name.removeprefix("loss_"): value for name, value in losses.items()}

        return loss

    def evaluate(
        self,
        model: DetectionModel,
        data: DenseData[ObjectSplit],
        training: Samples,
        validation: Samples,
        run: RunDirectory,
        process: Accelerator,
    ) -> dict[str, Any]:
        results = evaluate_detection(model.probe, validation, model.head.side, process)
        run.write("results.json", json.dumps(results) + "\n")
        counts = data.train.table.counts()
        negatives = int(((counts if training.rows is None else counts[training.rows]) == 0).sum())
        return {**coco_metrics(data.val.record(), results, _masks(model)), "train_negatives": negatives}

    def headline(self, metrics: dict[str, Any]) -> str:
        kind = "mask" if "mask_ap" in metrics else "box"
        return f"Detection: {kind} AP {100 * round(metrics[f'{kind}_ap'], 4):.2f} %"

    def examples(
        self, model: DetectionModel, data: DenseData[ObjectSplit], validation: Samples, process: Accelerator
    ) -> list[Example]:
        split, examples = data.val, []
        rows = spread(len(split))
        for row, found in detections(model.probe, validation, model.head.side, process, rows):
            target = split.target(row, split.has_masks)
            true = Objects(target["boxes"], target["labels"], None, target.get("masks"))
            examples.append(Example(split.ids[row], split.image(row), true, sure(found)))
        return examples


def sure(objects: Objects) -> Objects:
    """Return the objects with a score of at least `SURE`, or else the one with the highest score."""
    assert objects.scores is not None
    return above(objects, min(SURE, float(objects.scores.max())) if len(objects.scores) else SURE)


def above(objects: Objects, score: float) -> Objects:
    """Return the objects with at least this score, in [0, 1]."""
    assert objects.scores is not None
    kept = objects.scores >= score
    masks = None if objects.masks is None else objects.masks[kept]
    return Objects(objects.boxes[kept], objects.labels[kept], objects.scores[kept], masks)


def _masks(model: DetectionModel) -> bool:
    return bool(model.head.name == "mask-rcnn")


def _nothing(row: int) -> Labels:
    return {}
