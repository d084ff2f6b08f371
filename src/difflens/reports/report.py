"""The report of `difflens report`: accuracies of heads on one backbone, samples, memorisation check."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from difflens.errors import counted
from difflens.reports import charts
from difflens.reports.html import UNSELECTED, Picture, Section, Table, interval, render, runs_beneath
from difflens.reports.memorisation import TITLE
from difflens.results.fidelity import FidelityResult, caution
from difflens.results.report import HeadScore


def backbone_report(
    *,
    backbone: str,
    heads: Sequence[HeadScore],
    distances: Sequence[FidelityResult],
    samples: Picture,
    memorisation: Section | None,
    log: Sequence[Mapping[str, Any]],
    beneath: Mapping[str, Path],
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        backbone: its name.
        heads: accuracies of heads on its features.
        distances: distances of its samples from real images.
        samples: a grid of generated images.
        memorisation: the section that `copying_section` gives; None without training images to compare with.
        log: records of the pre-training with "epoch", "step" and "loss"; may be empty.
        beneath: reports of the runs that were read, relative to this report, by title.
        provenance: rows of the closing table.
    """
    unknown = Section(TITLE, "No training images to compare with were named: --data DATA names them.")
    sections = [
        _heads(heads),
        _distances(distances),
        Section("Generated samples", UNSELECTED, (samples,)),
        memorisation or unknown,
        *_pretraining(log),
        *runs_beneath(beneath),
    ]
    lead = (
        f"The accuracy of small heads on the features of one frozen backbone ({backbone}), and the images "
        "that it generates."
    )
    return render("Backbone report", lead, sections, provenance)


def samples_picture(grid: Image.Image, caption: str, image_size: int) -> Picture:
    """Return a grid of images of `image_size` pixels, enlarged to about 96 CSS pixels an image."""
    return Picture(grid, caption, "A grid of generated images", max(1, round(96 / image_size)))


def _heads(heads: Sequence[HeadScore]) -> Section:
    heads = sorted(heads, key=lambda head: head.top1)
    if not heads:
        return Section("Top-1 accuracy by head", "No run of difflens probe on this backbone was given.")
    rows: list[tuple[object, ...]] = []
    for head in heads:
        deviation = "" if head.deviation is None else f" ± {100 * head.deviation:.2f}"
        bounds = None if head.interval is None else interval(head.interval)
        counts = (head.train_images, head.test_images, head.trainable_parameters)
        rows.append((head.title, head.data, f"{100 * head.top1:.2f}{deviation}", bounds, *counts))
    columns = ("Head", "Data", "Top-1, %", "95 % interval", "Training images", "Test images", "Parameters")
    caption = "Every test image is evaluated once; ± is the standard deviation between seeds."
    parts: tuple[Table | Picture, ...] = (Table(columns, rows, caption),)
    one_data = len({head.data for head in heads}) == 1
    intervals = [head.interval for head in heads if head.interval is not None]
    if len(heads) > 1 and one_data and len(intervals) == len(heads):
        bars = charts.accuracy_bars([head.title for head in heads], [head.top1 for head in heads], intervals)
        parts += (Picture(bars, "Top-1 accuracy with 95 % intervals.", "Top-1 accuracy of every head"),)
    return Section("Top-1 accuracy by head", "", parts)


def _distances(distances: Sequence[FidelityResult]) -> Section:
    if not distances:
        return Section("Fréchet distance", "No run of difflens fidelity on generated images was given.")
    tables = []
    for result in distances:
        rows: list[tuple[object, ...]] = [
            (row.images, row.count, f"{row.frechet:.4g}", row.kid_text) for row in result.distances
        ]
        source = result.source
        sampler = f" Samples: {source.sampler}, {counted(source.steps, 'step')}." if source else ""
        warning = caution(result.sample_distance.count, result.dimensions)
        name = "FID" if result.inception else "Fréchet distance"
        caption = f"To {result.real_images:,} {result.real}. Features: {result.space}.{sampler} {warning}"
        tables.append(Table(("Images", "Number", name, "KID x 1,000"), rows, caption))
    text = "Distances of generated images from real images. They compare within one feature space only."
    return Section("Fréchet distance", text, tuple(tables))


def _pretraining(log: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not log:  # a run may have been stopped in its first epoch
        return []
    curve = Picture(charts.loss_curve([log]), "Mean loss by epoch.", "Pre-training loss by epoch")
    epochs, steps = log[-1]["epoch"], log[-1]["step"]
    text = f"{counted(epochs, 'epoch')}, {counted(steps, 'step')}."
    sections = [Section("Pre-training loss", text, (curve,))]
    if any("probe" in record for record in log):
        curves = Picture(charts.probe_curves(log), "Accuracy and effective rank by epoch.", "Probe by epoch")
        text = (
            "Measured during the training, on a fixed subset of labelled images. Training images of the data "
            "judge, so the figures compare epochs, and no test image was read."
        )
        sections.append(Section("Recognition while it was learnt", text, (curves,)))
    return sections
