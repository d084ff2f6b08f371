"""Detects objects in image files with a model of `difflens detect`."""

import torch
from torch import Tensor

from difflens.configs.predict import PredictConfig
from difflens.data.dense.base import Objects
from difflens.data.images import with_channels
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.models.saved import DetectionModel
from difflens.noise import PICTURE
from difflens.reports.overlays import object_overlay
from difflens.results.predict import DensePredictResult, DetectedImage, DetectedObject
from difflens.run.processes import accelerator
from difflens.tasks.detection.detect import above, sure
from difflens.tasks.detection.inference import coco_results, detect_objects
from difflens.tasks.predict import Announce, Answer, check_dense, write_predictions


def objects_in(model: DetectionModel, image: Tensor) -> Objects:
    """Return the objects in an image, the highest score first, in its pixels, on the CPU.

    Args:
        image: uint8, (C, H, W) of any size, C 1 or 3. It gets the noise of pictures (`noise.PICTURE`).
    """
    seen = with_channels(image, model.probe.extractor.backbone.in_channels).to(model.device)
    index = torch.tensor([PICTURE], device=seen.device)
    with evaluating(model.probe):
        (found,) = detect_objects(model.probe, [seen], index, model.head.side)
    return found


def predict_objects(config: PredictConfig, announce: Announce | None = None) -> DensePredictResult:
    """Detect objects in images, and write NAME.overlay.png and predictions.json.

    The prediction for an image does not depend on the other images.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the folder holds other
            things.
    """
    check_dense(config)
    if config.draws != 1:
        raise DiffLensError("--draws averages probabilities, which objects do not have: leave it out")
    device = accelerator(config.device).device
    model = DetectionModel.load(config.model, config.backbone, device)

    def answer(image: Tensor) -> Answer:
        found = objects_in(model, image)
        if config.threshold is not None:
            found = above(found, config.threshold)
        shown = found if config.threshold is not None else sure(found)
        objects = tuple(
            DetectedObject(
                label=model.classes[each["category_id"]],
                bbox=tuple(each["bbox"]),
                score=each["score"],
                segmentation=each.get("segmentation"),
            )
            for each in coco_results(found, 0, range(len(model.classes)))
        )
        return {"objects": objects}, {"overlay": object_overlay(image, shown, model.classes)}

    return write_predictions(config, DetectedImage, answer, model, announce)
