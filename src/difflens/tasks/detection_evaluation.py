"""Detection in whole images, in COCO's result format, and COCO's average precision of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens.data.coco import compressed, mask_tools
from difflens.data.dense import Objects
from difflens.data.images import to_float
from difflens.data.samples import Samples, resize, scaled_size, to_square
from difflens.errors import DiffLensError
from difflens.model import DenseProbe, evaluating
from difflens.training import progress_bar

BATCH = 8
"""Images that go through the network at a time."""

# of COCO's twelve figures those at 100 detections an image, in its order
_FIGURES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}
_KINDS = {"box": "bbox", "mask": "segm"}

Result = dict[str, Any]
"""An object in COCO's result format: image_id, category_id, bbox, score and, of Mask R-CNN, segmentation."""


@torch.no_grad()
def detect_objects(
    probe: DenseProbe, images: Sequence[Tensor], index: Tensor, side: int, draw: int = 0
) -> list[Objects]:
    """The objects in images of any size, best first, in pixels of each image, on the CPU.

    An image is scaled so that its longer side is `side`, and filled up to a square: what is found in it does not depend
    on what it is looked at with.

    Args:
        images: uint8 (C, H, W), with the channels of the backbone, on the probe's device.
        index: of each image in its data set, (B,) long, which with `draw` fixes its noise.
    """
    originals = [(image.shape[-2], image.shape[-1]) for image in images]
    sizes = [scaled_size(size, side, whole=True) for size in originals]
    squares = [to_square(resize(image, size), side) for image, size in zip(images, sizes, strict=True)]
    found = probe(to_float(torch.stack(squares)), index, draw, sizes=sizes, originals=originals)
    objects = []
    for each in found:
        masks = each["masks"].cpu() if "masks" in each else None
        objects.append(Objects(each["boxes"].cpu(), each["labels"].cpu(), each["scores"].cpu(), masks))
    return objects


def detections(
    probe: DenseProbe, samples: Samples, side: int, process: Accelerator, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, Objects]]:
    """The position and the objects of each of `rows`, or of this process's share of all, with the noise of draw 0."""
    mine = range(process.process_index, len(samples), process.num_processes) if rows is None else rows
    probe.to(process.device)
    with evaluating(probe), progress_bar(process.is_main_process and rows is None) as bar:
        task = bar.add_task("evaluating", total=len(mine), note="")
        for batch, images, _ in samples.all(torch.tensor(mine), BATCH):
            index = samples.split.index[batch].to(process.device)
            yield from zip(
                batch,
                detect_objects(probe, [image.to(process.device) for image in images], index, side),
                strict=True,
            )
            bar.update(task, advance=len(batch))


def evaluate_detection(probe: DenseProbe, samples: Samples, side: int, process: Accelerator) -> list[Result]:
    """The objects of every image of `samples`, in COCO's result format, images in their order."""
    record = samples.split.record
    categories = [category["id"] for category in record["categories"]]
    results: list[tuple[int, list[Result]]] = [
        (row, coco_results(objects, record["images"][row]["id"], categories))
        for row, objects in detections(probe, samples, side, process)
    ]
    if process.num_processes > 1:
        results = gather_object(results)
    return [result for _, found in sorted(results, key=lambda each: each[0]) for result in found]


def coco_results(objects: Objects, image_id: int, categories: Sequence[int]) -> list[Result]:
    """`objects` of one image; `categories` are the ids of the labels from 1 on."""
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


def coco_metrics(truth: dict[str, Any], results: Sequence[Result], masks: bool) -> dict[str, Any]:
    """COCO's average precision and recall, in [0, 1], None where there is nothing to find.

    Args:
        truth: images, annotations and categories, as in a COCO file.
        results: in COCO's result format.
        masks: also judge masks.

    Returns:
        For "box" and "mask": "box_ap" (mean over IoU 0.50 to 0.95), "box_ap50", "box_ap75", "box_ap_small",
        "box_ap_medium", "box_ap_large", "box_ar" (recall with 100 detections an image) and "box_ap_by_class".

    Raises:
        DiffLensError: there is no object to find, or faster-coco-eval is not installed.
    """
    mask_tools()
    from faster_coco_eval import COCO, COCOeval_faster

    if not any(not each.get("iscrowd") for each in truth["annotations"]):
        raise DiffLensError("the validation images show no objects, so there is nothing to measure")
    metrics: dict[str, Any] = {}
    # in the library's matches 0 means none, so it must be nothing's id
    annotations = [{**each, "id": k} for k, each in enumerate(truth["annotations"], start=1)]
    coco = COCO({**truth, "annotations": annotations})
    for name, kind in _KINDS.items() if masks else [("box", "bbox")]:
        if results:
            # a mask is as large as its pixels, which the library goes by only if it sees no box
            unseen = "bbox" if kind == "segm" else "segmentation"
            found = [{key: value for key, value in each.items() if key != unseen} for each in results]
            evaluator = COCOeval_faster(coco, coco.loadRes(found), kind, print_function=_silent)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats = evaluator.stats
            # (IoU thresholds, recalls, classes, areas, most detections): all areas, 100 detections
            precision = evaluator.eval["precision"][:, :, :, 0, -1]
            by_class = [
                float(each[each > -1].mean()) if (each > -1).any() else None
                for each in np.moveaxis(precision, 2, 0)
            ]
        else:  # an early model may find nothing
            there = {each["category_id"] for each in annotations if not each.get("iscrowd")}
            stats, by_class = [0.0] * 12, [0.0 if c["id"] in there else None for c in truth["categories"]]
        metrics |= {
            f"{name}_{key}": None if stats[place] < 0 else float(stats[place])
            for key, place in _FIGURES.items()
        }
        names = [category["name"] for category in truth["categories"]]
        metrics[f"{name}_ap_by_class"] = dict(zip(names, by_class, strict=True))
    return metrics


def _silent(*_: object) -> None:
    """The library would print tables."""
