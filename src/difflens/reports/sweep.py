"""The report of a sweep: the accuracy of every place, and the recommended ones."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from difflens.errors import plural
from difflens.metrics.recommendation import Recommendation
from difflens.processes.base import Level, bracketed, in_words
from difflens.reports.charts import accuracy_curves
from difflens.reports.heat_maps import accuracy_map
from difflens.reports.html import Picture, Section, Table, interval, render
from difflens.results.sweep import describe

_TITLES = {"ridge": "ridge regression", "logistic": "logistic regression", "knn": "nearest neighbours"}

_HALVED = (
    "Successive halving: the better half of the places was measured again on twice as many images, and so "
    "on. Accuracies of places with fewer images tend to be lower: their classifiers learnt from fewer."
)


def sweep_report(
    *,
    summary: str,
    accuracy: Mapping[str, Tensor],
    blocks: Sequence[int],
    roles: Sequence[str],
    log_snr: Mapping[Level, float],
    not_measured: Mapping[Level, float],
    best: Recommendation,
    images: int,
    commands: Sequence[str],
    provenance: Mapping[str, object],
    images_by_place: Tensor | None = None,
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        summary: the backbone and the data, in a sentence.
        accuracy: (T, B) shares in [0, 1], by classifier; the first classifier decides.
        blocks: indices of the B columns.
        roles: the part of the network of each column, "encoder", "middle" or "decoder".
        log_snr: log-SNR of the T rows by noise step, from the least to the most noise.
        not_measured: log-SNR of the noise steps that a time budget left out, by noise step.
        best: the recommendation.
        images: number of validation images.
        commands: the command lines to run next.
        provenance: rows of the closing table.
        images_by_place: (T, B) numbers of images behind the accuracies of a sweep that halves; None: all.
    """
    recommended = describe(best, log_snr, images)
    sections = [
        Section("Recommended block and noise step", recommended, (_recommendation(best, log_snr),)),
    ]
    if not_measured:
        text = (
            f"The time budget ended before {plural('noise step', len(not_measured))} "
            f"{in_words(not_measured)}."
        )
        sections.append(Section("Not measured", f"{text} --resume measures what is missing."))
    (first, decisive), *others = accuracy.items()
    place = best.block, best.noise_step
    curves = accuracy_curves(decisive, blocks, log_snr, place)
    pictures = (
        _heat_map(first, accuracy_map(decisive, blocks, log_snr, roles, place)),
        Picture(curves, "The same accuracies as curves.", "Accuracy by block, and by noise step"),
    )
    halved = "" if images_by_place is None else _HALVED
    sections.append(Section(f"Accuracy by block and noise step: {_TITLES[first]}", halved, pictures))
    for name, values in others:
        picture = _heat_map(name, accuracy_map(values, blocks, log_snr, roles, None))
        sections.append(
            Section(f"Accuracy by block and noise step: {_TITLES[name]}", "For comparison.", (picture,))
        )
    columns = ("Block", "Part", *(bracketed(t, value) for t, value in log_snr.items()))
    caption = (
        f"{_TITLES[first].capitalize()}, validation accuracy in per cent. Columns are noise steps t, with "
        "their log-SNR in brackets."
    )
    marked = list(blocks).index(best.block)
    rows = _by_block(blocks, roles, [[f"{100 * value:.2f}" for value in row] for row in decisive.T.tolist()])
    sections.append(Section("Table of accuracies", "", (Table(columns, rows, caption, marked),)))
    if images_by_place is not None:
        counts = _by_block(blocks, roles, [[f"{n:,}" for n in row] for row in images_by_place.T.tolist()])
        caption = "The training images that stand behind each accuracy. Columns are as above."
        sections.append(Section("Table of images", "", (Table(columns, counts, caption, marked),)))
    sections.append(Section("Next commands", commands=tuple(commands)))
    return render("Sweep: accuracy by block and noise step", summary, sections, provenance)


def _by_block(
    blocks: Sequence[int], roles: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[tuple[object, ...]]:
    """Return the rows of a table, one a block, that begin with its index and its part of the network."""
    return [(str(block), role, *row) for block, role, row in zip(blocks, roles, cells, strict=True)]


def _recommendation(best: Recommendation, log_snr: Mapping[Level, float]) -> Table:
    figures = ("Validation accuracy, %", "Cross-validated, %", "95 % interval")
    columns = ("Read", "Blocks", "Noise steps (log-SNR)", *figures)
    rows: list[tuple[object, ...]] = [
        (
            "one map",
            str(best.block),
            bracketed(best.noise_step, log_snr[best.noise_step]),
            f"{100 * best.top1:.2f}",
            f"{100 * best.cross_validated:.2f}",
            interval(best.cross_validated_interval),
        ),
        (
            "DifFormer",
            ", ".join(map(str, best.fusion_blocks)),
            ", ".join(bracketed(t, log_snr[t]) for t in log_snr if t in best.fusion_noise_steps),
            f"{100 * best.fusion_top1:.2f}",
            f"{100 * best.fusion_cross_validated:.2f}",
            interval(best.fusion_cross_validated_interval),
        ),
    ]
    caption = (
        "DifFormer was not trained: its accuracies are those of the averaged scores of single places. "
        "Cross-validated: the place is chosen on one half of the images and its accuracy measured on the "
        "other half, in both directions. The interval belongs to the cross-validated accuracy."
    )
    return Table(columns, rows, caption)


def _heat_map(classifier: str, figure: Figure) -> Picture:
    return Picture(
        figure,
        f"Accuracy in per cent, {_TITLES[classifier]}. Accuracies below the scale have one colour.",
        f"Heat map of accuracy by block and noise step, {classifier}",
    )
