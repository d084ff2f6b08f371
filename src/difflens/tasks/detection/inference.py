"""Detects objects in whole images, and writes them in COCO's result format."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens.data.dense.base import Objects
from difflens.data.dense.run_lengths import compressed
from difflens.data.dense.samples import Samples, resize, scaled_size, to_square
from difflens.data.images import to_float
from difflens.metrics.detection import Result
from difflens.models.probe import DenseProbe
from difflens.tasks.dense import evaluation_batches

BATCH = 8
"""Images in a batch."""


@torch.no_grad()
def detect_objects(
    probe: DenseProbe, images: Sequence[Tensor], index: Tensor, side: int, draw: int = 0
) -> list[Objects]:
    """Return the objects in images of any size, the highest score first, in pixels of each image, on the CPU.

    An image is scaled so that its longer side is `side`, and padded to a square. Its objects do not depend on
    the other images of the batch.

    Args:
        images: uint8, (C, H, W) each, with the channels of the backbone, on the probe's device.
        index: (B,) long: the position of each image in its data set, which decides its noise together with
            `draw`.
    """
    originals = [(image.shape[-2], image.shape[-1]) for image in images]
    sizes = [scaled_size(size, side, whole=True) for size in originals]
    squares = [to_square(resize(image, size), side) for image, size in zip(images, sizes, strict=True)]
    detected = probe(to_float(torch.stack(squares)), index, draw, sizes=sizes, originals=originals)
    objects = []
    for each in detected:
        masks = each["masks"].cpu() if "masks" in each else None
        objects.append(Objects(each["boxes"].cpu(), each["labels"].cpu(), each["scores"].cpu(), masks))
    return objects


def detections(
    probe: DenseProbe, samples: Samples, side: int, process: Accelerator, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, Objects]]:
    """Yield the position and the objects of each image, with the noise of draw 0.

    Args:
        rows: positions to read; None: this process's share of all images.
    """
    for batch, images, _ in evaluation_batches(probe, samples, BATCH, process, rows):
        index = samples.split.noise_index[batch].to(process.device)
        yield from zip(batch, detect_objects(probe, images, index, side), strict=True)


def evaluate_detection(probe: DenseProbe, samples: Samples, side: int, process: Accelerator) -> list[Result]:
    """Return the objects of all images of `samples` in COCO's result format, in the order of the images."""
    split = samples.split
    categories = [*split.categories]
    results: list[tuple[int, list[Result]]] = [
        (row, coco_results(objects, int(split.image_ids[row]), categories))
        for row, objects in detections(probe, samples, side, process)
    ]
    if process.num_processes > 1:
        results = gather_object(results)
    return [result for _, objects in sorted(results, key=lambda each: each[0]) for result in objects]


def coco_results(objects: Objects, image_id: int, categories: Sequence[int]) -> list[Result]:
    """Return the objects of one image in COCO's result format; `categories` are the ids of the labels from 1
    on."""
    assert objects.scores is not None
    results = []
    for k, (box, label, score) in enumerate(
        zip(objects.boxes.tolist(), objects.labels.tolist(), objects.scores.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        result: Result = {
            "image_id": image_id,
            "category_id": categories[label - 1],
            "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
            "score": round(score, 5),
        }
        if objects.masks is not None:
            result["segmentation"] = compressed(objects.masks[k].numpy())
        results.append(result)
    return results
