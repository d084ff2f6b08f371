"""`difflens segment`: trains a semantic segmentation head on a pyramid of features."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.configs.options import given, resolve
from difflens.configs.segment import SegmentConfig
from difflens.data.dense.base import IGNORED, DenseData
from difflens.data.dense.masks import MaskSplit, load_masks, load_pairs
from difflens.data.dense.samples import Labels, Samples
from difflens.errors import DiffLensError, expanded
from difflens.heads.config import SegmentationHeadConfig
from difflens.models.saved import SegmentationModel
from difflens.reports.dense import segmentation_sections
from difflens.results.dense import Example
from difflens.results.segment import SegmentResult
from difflens.run.directory import RunDirectory
from difflens.run.processes import accelerator
from difflens.tasks.dense import (
    DenseTask,
    Plan,
    run_dense,
    spread,
)
from difflens.tasks.objectives import Loss
from difflens.tasks.segmentation.inference import (
    Sliding,
    evaluate_segmentation,
    predictions,
    require_probabilities,
)


def segment(config: SegmentConfig) -> SegmentResult:
    """Run `config`: train, evaluate once, and write the run directory.

    Raises:
        DiffLensError: bad data, a backbone that cannot take images of this size, or a folder that holds
            another run.
    """
    config = resolve(config)
    process = accelerator(config.device)
    check_batch(config, process.num_processes)
    return run_dense(Segmentation(config), process, SegmentResult.from_metrics)


def check_batch(config: SegmentConfig, processes: int) -> None:
    """Raise DiffLensError if UPerNet would normalise over a single image."""
    least = 2 * processes * config.accumulate
    if config.head == "upernet" and given(config.batch_size) < least:
        raise DiffLensError(
            f"UPerNet normalises over the images of a forward pass: give --batch-size {least} or more, or "
            "--head linear"
        )


class Segmentation(DenseTask[SegmentConfig, MaskSplit, SegmentationModel]):
    """Segmentation: the loss is the cross-entropy of the pixels, the metric the mean intersection over
    union."""

    model_kind, scores = SegmentationModel, ("miou",)
    sections = staticmethod(segmentation_sections)
    whole, fill = False, IGNORED

    def load(self) -> DenseData[MaskSplit]:
        config = self.config
        reading = config.on_bad_annotation, config.ignore, config.exif
        if config.data is not None:
            return load_masks(expanded(config.data), *reading)
        return load_pairs(given(config.train), given(config.val), given(config.classes), *reading)

    def head(self, plan: Plan, data: DenseData[MaskSplit] | None) -> SegmentationHeadConfig:
        return SegmentationHeadConfig(
            self.config.head, plan.side, plan.strides, plan.width, mix=self.config.mix
        )

    def labels(self, model: SegmentationModel, split: MaskSplit, train: bool) -> Callable[[int], Labels]:
        return partial(_mask, split)

    def loss(self, module: nn.Module) -> Loss:
        def loss(images: Tensor, index: Tensor, draw: int, labels: list[Labels]) -> dict[str, Tensor]:
            logits = module(images, index, draw, size=tuple(images.shape[-2:]))
            masks = torch.stack([each["mask"] for each in labels]).long()
            total = nn.functional.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
            # a batch may have no pixel with a class
            return {"pixels": total / (masks != IGNORED).sum().clamp(min=1)}

        return loss

    def require_memory(self, head: SegmentationHeadConfig, data: DenseData[MaskSplit]) -> None:
        sliding = Sliding(head.side, self.config.eval_scales, self.config.eval_flip)
        for height, width in {data.val.shape(row)[1:] for row in range(len(data.val))}:
            require_probabilities(len(data.classes), height, width, sliding)

    def facts(self, data: DenseData[MaskSplit]) -> dict[str, Any]:
        values = data.train.class_values()
        # a class with the value of no class cannot be told from it
        stored = values != [*range(len(values))] and IGNORED not in values
        return {"mask_values": values} if stored else {}

    def evaluate(
        self,
        model: SegmentationModel,
        data: DenseData[MaskSplit],
        training: Samples,
        validation: Samples,
        run: RunDirectory,
        process: Accelerator,
    ) -> dict[str, Any]:
        sliding = self._sliding(model)
        return evaluate_segmentation(model.probe, validation, data.classes, sliding, process).metrics()

    def headline(self, metrics: dict[str, Any]) -> str:
        return f"Segmentation: {100 * metrics['miou']:.2f} % mIoU"

    def examples(
        self, model: SegmentationModel, data: DenseData[MaskSplit], validation: Samples, process: Accelerator
    ) -> list[Example]:
        rows = spread(len(data.val))
        return [
            Example(data.val.ids[row], data.val.image(row), true, predicted)
            for row, predicted, true in predictions(
                model.probe, validation, self._sliding(model), process, rows
            )
        ]

    def _sliding(self, model: SegmentationModel) -> Sliding:
        return Sliding(model.head.side, self.config.eval_scales, self.config.eval_flip)


def _mask(split: MaskSplit, row: int) -> Labels:
    return {"mask": split.mask(row)}
