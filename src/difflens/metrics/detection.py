"""Average precision of boxes and masks, as COCO defines it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from difflens.errors import DiffLensError

# of COCO's twelve figures those at 100 detections an image, in its order
_FIGURES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}


_KINDS = {"box": "bbox", "mask": "segm"}


Result = dict[str, Any]
"""An object in COCO's result format: image_id, category_id, bbox, score and, of Mask R-CNN, segmentation."""


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
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise DiffLensError('detection needs `pip install "difflens[dense]"`') from error
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
