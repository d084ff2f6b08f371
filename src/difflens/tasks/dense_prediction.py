"""`difflens predict` with a model of `segment` or `detect`: overlays and masks as PNG, the rest as JSON."""

import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from difflens.configs.predict import PredictConfig
from difflens.data.dense.masks import to_palette_image
from difflens.data.files import list_images
from difflens.data.images import BadImage, read_image, with_channels
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.models.saved import DetectionModel, SegmentationModel, model_task
from difflens.reports.overlays import mask_overlay, object_overlay
from difflens.run.files import replace_with
from difflens.run.processes import accelerator
from difflens.tasks.detection.detect import sure
from difflens.tasks.detection.inference import coco_results, detect_objects
from difflens.tasks.segmentation.inference import Sliding, class_probabilities

_RECORD = "predictions.json"


def predict_dense(config: PredictConfig, skipped: list[str] | None = None) -> list[dict[str, Any]]:
    """Segment images, or find objects in them, and write what is found to `config.out`.

    NAME.overlay.png shows it over the image; NAME.mask.png, of a segmentation, has the classes as values; and
    predictions.json has what is returned. An answer does not depend on what else is asked.

    Args:
        skipped: receives a line for each image that could not be read.

    Returns:
        A record an image: "image", its path; "width" and "height"; "overlay", a file name; and of a segmentation
        "mask", a file name, and "classes", shares of the pixels by class, largest first; of a detection "objects",
        best first, with "label", "score", "bbox" (left, top, width, height in pixels) and, of Mask R-CNN,
        "segmentation", in COCO's run lengths.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the folder holds other things.
    """
    if config.draws < 1:
        raise DiffLensError("--draws must be at least 1")
    if not config.images:
        raise DiffLensError("no images given: name image files or folders of images after the model")
    out = config.out or Path("predictions")
    if out.exists() and not (out / _RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DiffLensError(
            f"{out} is not a folder of predictions, and nothing in it is replaced: name another with --out"
        )
    device = accelerator(config.device).device
    answer = (
        _segmenter(config, device)
        if model_task(config.model) == "segmentation"
        else _detector(config, device)
    )
    paths = list_images(config.images)
    readable = list(
        _readable(paths, config, skipped)
    )  # an unreadable image stops this before anything is written
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for path, name in zip(readable, _names(readable), strict=True):
        image = read_image(path)
        record, pictures = answer(image)
        files = {kind: f"{name}.{kind}.png" for kind in pictures}
        for kind, picture in pictures.items():
            replace_with(out / files[kind], picture.save)
        size = {"width": image.shape[-1], "height": image.shape[-2]}
        records.append({"image": str(path), **size, **files, **record})
    text = json.dumps(records, indent=2) + "\n"
    replace_with(out / _RECORD, lambda target: target.write_text(text))
    return records


def _segmenter(config: PredictConfig, device: torch.device) -> Any:
    model = SegmentationModel.load(config.model, config.backbone, device)
    sliding, channels = Sliding(model.head.side), model.probe.extractor.backbone.in_channels

    def answer(image: Tensor) -> tuple[dict[str, Any], dict[str, Image.Image]]:
        seen = with_channels(image, channels).to(device)
        with evaluating(model.probe):
            draws = (class_probabilities(model.probe, seen, 0, sliding, draw) for draw in range(config.draws))
            mask = reduce(torch.Tensor.add_, draws).argmax(0).to(torch.uint8).cpu()
        counts = mask.flatten().long().bincount(minlength=len(model.classes)) / mask.numel()
        order = counts.argsort(descending=True, stable=True).tolist()
        shares = {model.classes[k]: round(float(counts[k]), 6) for k in order if counts[k]}
        pictures = {
            "overlay": mask_overlay(image, mask, model.classes),
            "mask": to_palette_image(mask.numpy()),
        }
        return {"classes": shares}, pictures

    return answer


def _detector(config: PredictConfig, device: torch.device) -> Any:
    if config.draws != 1:
        raise DiffLensError("--draws averages probabilities, which objects do not have: leave it out")
    model = DetectionModel.load(config.model, config.backbone, device)
    channels = model.probe.extractor.backbone.in_channels

    def answer(image: Tensor) -> tuple[dict[str, Any], dict[str, Image.Image]]:
        seen, index = (
            with_channels(image, channels).to(device),
            torch.zeros(1, dtype=torch.long, device=device),
        )
        with evaluating(model.probe):
            (found,) = detect_objects(model.probe, [seen], index, model.head.side)
        objects = []
        for result in coco_results(found, 0, range(len(model.classes))):
            label = model.classes[result.pop("category_id")]
            del result["image_id"]
            objects.append({"label": label, **result})
        return {"objects": objects}, {"overlay": object_overlay(image, sure(found), model.classes)}

    return answer


def _readable(paths: list[Path], config: PredictConfig, skipped: list[str] | None) -> Iterator[Path]:
    for path in paths:
        try:
            read_image(path)
        except BadImage as error:
            if config.on_bad_image == "error":
                raise
            if skipped is not None:
                skipped.append(f"{path}: {error.reason}")
        else:
            yield path


def _names(paths: list[Path]) -> list[str]:
    """A name for each path: its stem, with a number where an earlier one has it."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names
