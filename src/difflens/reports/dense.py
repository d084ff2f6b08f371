"""The reports of segmentation and detection: how good it is, how it was trained, and what it looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from difflens.data.dense.base import IGNORED
from difflens.reports import charts, overlays
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.dense import Example

_SHOWN_BAD = 20


def dense_report(
    *, title: str, command: str, summary: str, sections: Sequence[Section], provenance: Mapping[str, object]
) -> str:
    """One self-contained HTML document.

    Args:
        command: the command line that makes the run again.
        summary: what was read with what, in a sentence or two.
        sections: `segmentation_sections` or `detection_sections`.
        provenance: further rows of the closing table.
    """
    return render(title, summary, sections, {"Command": command, **provenance})


def segmentation_sections(
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    classes: Sequence[str],
) -> list[Section]:
    """What `SegmentationEvaluation.metrics` and the log of a run say, and some of its images."""
    rows: list[tuple[object, ...]] = [
        ("Mean intersection over union, %", _percent(metrics["miou"])),
        ("Pixel accuracy, %", _percent(metrics["pixel_accuracy"])),
        ("Mean accuracy of the classes, %", _percent(metrics["mean_accuracy"])),
        *_counts(metrics),
    ]
    caption = (
        "The mean intersection over union is over the classes that the validation images show or that are predicted, "
        "the mean accuracy over those that they show."
    )
    bars = charts.per_class_bars(metrics["iou"], None, "intersection over union, %")
    values = {
        value for each in examples for mask in (each.true, each.predicted) for value in mask.unique().tolist()
    }
    first = overlays.first_colour(classes)
    legend = [(value + first, classes[value]) for value in sorted(values - {IGNORED}) if value + first]
    pictures = [
        [
            overlays.mask_overlay(each.image, mask, classes)
            for mask in (_nothing(each.true), each.true, each.predicted)
        ]
        for each in examples
    ]
    return [
        Section("Result", parts=(Table(("Figure", "Value"), rows, caption),)),
        Section("Per class", parts=(
            Picture(bars, "The dotted line is the mean. All classes are in metrics.json.", "Quality by class"),
        )),
        _shown(pictures, legend),
        *_training(log),
        *_left_out(metrics),
    ]  # fmt: skip


def detection_sections(
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    classes: Sequence[str],
) -> list[Section]:
    """What `coco_metrics` and the log of a run say, and some of its images."""
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in metrics]
    names = {
        "ap": "AP, mean over IoU 0.50 to 0.95", "ap50": "AP at IoU 0.50", "ap75": "AP at IoU 0.75",
        "ap_small": "AP of small objects", "ap_medium": "AP of medium objects", "ap_large": "AP of large objects",
    }  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (name, *(_percent(metrics[f"{kind}_{key}"]) for kind in kinds)) for key, name in names.items()
    ]
    caption = "COCO's average precision. Small is below 32 x 32 pixels, large above 96 x 96; a dash: there are no such objects."
    main = kinds[-1]
    bars = charts.per_class_bars(metrics[f"{main}_ap_by_class"], None, f"{main} AP, %")
    pictures = [
        [
            overlays.object_overlay(each.image, objects, classes)
            for objects in (each.true, each.predicted)
        ]
        for each in examples
    ]  # fmt: skip
    shown = Picture(
        overlays.examples(("true", "predicted"), pictures, ()),
        "The first validation images; objects with a score of at least 0.5.",
        "Images with true and with predicted objects",
    )
    return [
        Section("Result", parts=(
            Table(("%", *(f"{kind}es" if kind == "box" else f"{kind}s" for kind in kinds)), rows, caption),
            Table(("In this run", "Number"), _counts(metrics)),
        )),
        Section("Per class", parts=(Picture(bars, "The dotted line is the mean.", "Average precision by class"),)),
        Section("Examples", parts=(shown,)),
        *_training(log),
        *_left_out(metrics),
    ]  # fmt: skip


def _nothing(mask: Tensor) -> Tensor:
    return mask.new_full(mask.shape, IGNORED)


def _shown(pictures: Sequence[Sequence[Any]], legend: Sequence[tuple[int, str]]) -> Section:
    picture = Picture(
        overlays.examples(("image", "true", "predicted"), pictures, legend),
        "The first validation images.",
        "Images with their true and their predicted classes",
    )
    return Section("Examples", parts=(picture,))


def _counts(metrics: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows = {
        "Training images": "train_images", "Training images without objects": "train_negatives",
        "Validation images": "val_images", "Iterations": "iterations",
        "Trainable parameters": "trainable_parameters",
    }  # fmt: skip
    counts: list[tuple[object, ...]] = [(name, metrics[key]) for name, key in rows.items() if key in metrics]
    return [*counts, ("Training, s", f"{metrics['train_seconds']:.1f}")]


def _training(log: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not log:
        return []
    curve = charts.loss_curve([log], by="iteration")
    caption = "Each point is the mean since the one before."
    return [Section("Training", parts=(Picture(curve, caption, "Training loss by iteration"),))]


def _left_out(metrics: Mapping[str, Any]) -> list[Section]:
    bad = metrics["bad_annotations"]
    if not bad:
        return []
    rows: list[tuple[object, ...]] = [(line,) for line in bad[:_SHOWN_BAD]]
    caption = f"{len(bad):,} annotations were left out" + (
        f"; the first {_SHOWN_BAD}." if len(bad) > _SHOWN_BAD else "."
    )
    return [Section("Bad annotations", parts=(Table(("Where, and what is wrong",), rows, caption),))]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}"
