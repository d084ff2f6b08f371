"""The reports of segmentation and detection: metrics, training loss, and example images."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from difflens.data.dense.base import IGNORED
from difflens.errors import counted, listing
from difflens.reports import charts, overlays
from difflens.reports.html import Picture, Section, Table, percent, render
from difflens.results.dense import Example

_MOST_BAD = 20  # bad annotations that have a row


def dense_report(
    *, title: str, command: str, summary: str, sections: Sequence[Section], provenance: Mapping[str, object]
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        command: the command line that repeats the run.
        summary: the model and the data, in a sentence or two.
        sections: from `segmentation_sections` or `detection_sections`.
        provenance: further rows of the closing table.
    """
    return render(title, summary, sections, {"Command": command, **provenance})


def segmentation_sections(
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    classes: Sequence[str],
) -> list[Section]:
    """Return the sections on a segmentation run.

    Args:
        metrics: from `SegmentationEvaluation.metrics`.
        log: records with "iteration" and "loss"; may be empty.
        examples: validation images with true and predicted masks.
        classes: their names, in the order of the values in the masks.
    """
    rows: list[tuple[object, ...]] = [
        ("Mean intersection over union, %", percent(metrics["miou"])),
        ("Pixel accuracy, %", percent(metrics["pixel_accuracy"])),
        ("Mean accuracy of the classes, %", percent(metrics["mean_accuracy"])),
        *_counts(metrics),
    ]
    caption = (
        "The mean intersection over union is the mean over the classes that are present in the validation "
        "images or predicted. The mean accuracy is the mean over the classes that are present."
    )
    if absent := metrics.get("absent_classes"):
        caption += f" Classes without a validation pixel: {listing(absent)}."
    bars = Picture(
        charts.per_class_bars(metrics["iou"], None, "intersection over union, %"),
        "The worst class is on top; the dotted line is the mean. All classes are in metrics.json.",
        "Intersection over union by class",
    )
    masks = [mask for example in examples for mask in (example.true, example.predicted)]
    legend = overlays.legend_of((value for mask in masks for value in mask.unique().tolist()), classes)
    pictures = [
        [
            overlays.mask_overlay(example.image, mask, classes)
            for mask in (_nothing(example.true), example.true, example.predicted)
        ]
        for example in examples
    ]
    return [
        Section("Result", parts=(Table(("Metric", "Value"), rows, caption),)),
        Section("Per class", parts=(bars,)),
        _examples(pictures, legend),
        *_training(log),
        *_left_out(metrics),
    ]


def detection_sections(
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    classes: Sequence[str],
) -> list[Section]:
    """Return the sections on a detection run.

    Args:
        metrics: from `coco_metrics`.
        log: records with "iteration" and "loss"; may be empty.
        examples: validation images with true and predicted objects.
        classes: their names, in the order of the labels.
    """
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in metrics]
    plurals = {"box": "boxes", "mask": "masks"}
    names = {
        "ap": "AP, mean over IoU 0.50 to 0.95",
        "ap50": "AP at IoU 0.50",
        "ap75": "AP at IoU 0.75",
        "ap_small": "AP of small objects",
        "ap_medium": "AP of medium objects",
        "ap_large": "AP of large objects",
    }
    rows: list[tuple[object, ...]] = [
        (name, *(percent(metrics[f"{kind}_{key}"]) for kind in kinds)) for key, name in names.items()
    ]
    caption = (
        "COCO's average precision. Small objects are below 32 x 32 pixels, large objects above 96 x 96. A "
        "dash means that there are no such objects."
    )
    precision = Table(("%", *(plurals[kind] for kind in kinds)), rows, caption)
    counts = Table(("In this run", "Number"), _counts(metrics))
    main = kinds[-1]
    bars = charts.per_class_bars(metrics[f"{main}_ap_by_class"], None, f"{main} AP, %")
    by_class = Picture(
        bars,
        "The worst class is on top; the dotted line is the mean. Classes without objects are left out.",
        "Average precision by class",
    )
    pairs = [(example.image, (example.true, example.predicted)) for example in examples]
    pictures = [
        [overlays.object_overlay(image, objects, classes) for objects in pair] for image, pair in pairs
    ]
    first_images = Picture(
        overlays.examples(("true", "predicted"), pictures, ()),
        "Validation images, evenly spaced; objects with a score of at least 0.5, or else the best one.",
        "Images with true and with predicted objects",
    )
    return [
        Section("Result", parts=(precision, counts)),
        Section("Per class", parts=(by_class,)),
        Section("Examples", parts=(first_images,)),
        *_training(log),
        *_left_out(metrics),
    ]


def _nothing(mask: Tensor) -> Tensor:
    return mask.new_full(mask.shape, IGNORED)


def _examples(pictures: Sequence[Sequence[Any]], legend: Sequence[tuple[tuple[int, ...], str]]) -> Section:
    picture = Picture(
        overlays.examples(("image", "true", "predicted"), pictures, legend),
        "Validation images, evenly spaced.",
        "Images with their true and their predicted classes",
    )
    return Section("Examples", parts=(picture,))


def _counts(metrics: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows = {
        "Training images": "train_images",
        "Training images without objects": "train_negatives",
        "Validation images": "val_images",
        "Iterations": "iterations",
        "Trainable parameters": "trainable_parameters",
    }
    counts: list[tuple[object, ...]] = [(name, metrics[key]) for name, key in rows.items() if key in metrics]
    return [*counts, ("Training, s", f"{metrics['train_seconds']:.1f}")]


def _training(log: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not log:
        return []
    curve = charts.loss_curve([log], by="iteration")
    caption = "Each point is the mean loss since the point before it."
    return [Section("Training", parts=(Picture(curve, caption, "Training loss by iteration"),))]


def _left_out(metrics: Mapping[str, Any]) -> list[Section]:
    bad = metrics["bad_annotations"]
    if not bad:
        return []
    rows: list[tuple[object, ...]] = [(line,) for line in bad[:_MOST_BAD]]
    caption = f"{counted(len(bad), 'annotation')} {'was' if len(bad) == 1 else 'were'} left out."
    if len(bad) > _MOST_BAD:
        caption += f" These are the first {_MOST_BAD}."
    return [Section("Bad annotations", parts=(Table(("File and error",), rows, caption),))]
