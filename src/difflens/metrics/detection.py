"""Average precision of boxes and masks, as COCO defines it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from difflens.errors import DiffLensError

# the figures at 100 detections an image: their indices in COCO's twelve figures
_FIGURES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}

# pixels of an object, as COCO counts its sizes
_AREAS = {"ap_small": (0, 32**2), "ap_medium": (32**2, 96**2), "ap_large": (96**2, 1e10)}

_KINDS = {"box": "bbox", "mask": "segm"}

Result = dict[str, Any]
"""A detection in COCO's format: image_id, category_id, bbox, score and, for Mask R-CNN, segmentation."""


def coco_metrics(truth: dict[str, Any], results: Sequence[Result], masks: bool) -> dict[str, Any]:
    """Return COCO's average precision and recall (Lin et al., 2014), in [0, 1].

    Args:
        truth: images, annotations and categories, as in a COCO file.
        results: detections in COCO's result format.
        masks: evaluate masks too.

    Returns:
        "box_ap" (mean over IoU 0.50 to 0.95), "box_ap50", "box_ap75", "box_ap_small", "box_ap_medium",
        "box_ap_large", "box_ar" (recall with 100 detections an image) and "box_ap_by_class"; with `masks`,
        the same for "mask". A figure is None if the images show no such objects.

    Raises:
        DiffLensError: the images show no objects, or faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise DiffLensError('detection needs `pip install "difflens[dense]"`') from error
    if all(annotation.get("iscrowd") for annotation in truth["annotations"]):
        raise DiffLensError("the validation images show no objects, so there is nothing to measure")
    metrics: dict[str, Any] = {}
    # ids begin at 1: the library marks a detection without a match with 0
    annotations = [{**annotation, "id": k} for k, annotation in enumerate(truth["annotations"], start=1)]
    coco = COCO({**truth, "annotations": annotations})
    for name, kind in _KINDS.items() if masks else [("box", "bbox")]:
        if results:
            # the area of a mask is its pixels, which the library uses only for results without a box
            removed = "bbox" if kind == "segm" else "segmentation"
            scored = [{key: value for key, value in result.items() if key != removed} for result in results]
            evaluator = COCOeval_faster(coco, coco.loadRes(scored), kind, print_function=_silent)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            stats = evaluator.stats
            # (IoU thresholds, recalls, classes, areas, most detections): all areas, 100 detections
            precision = evaluator.eval["precision"][:, :, :, 0, -1]
            by_class = [
                float(values[values > -1].mean()) if (values > -1).any() else None
                for values in np.moveaxis(precision, 2, 0)
            ]
        else:  # a model at the start of training may detect nothing
            objects = [one for one in annotations if not one.get("iscrowd")]
            present = {one["category_id"] for one in objects}
            stats, by_class = [0.0] * 12, [0.0 if c["id"] in present else None for c in truth["categories"]]
            for key, (low, high) in _AREAS.items():
                if not any(low <= one["area"] <= high for one in objects):
                    stats[_FIGURES[key]] = -1.0
        metrics |= {
            f"{name}_{key}": None if stats[index] < 0 else float(stats[index])
            for key, index in _FIGURES.items()
        }
        names = [category["name"] for category in truth["categories"]]
        metrics[f"{name}_ap_by_class"] = dict(zip(names, by_class, strict=True))
    return metrics


def _silent(*_: object) -> None:
    """Print nothing, where the library would print tables."""
