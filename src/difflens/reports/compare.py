"""The report of `difflens compare`: one table, one plot, and the differences with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from difflens.errors import counted
from difflens.processes.base import bracketed
from difflens.reports.html import Picture, Section, Table, interval, percent, render, runs_beneath
from difflens.results.compare import BackboneScores, Score

_METRICS = {"top1": "Top-1 accuracy", "mean_per_class": "Mean accuracy per class"}


def compare_report(
    *,
    backbones: Sequence[BackboneScores],
    data: str,
    test_images: int,
    titles: Mapping[str, str],
    swept: int | None,
    seeds: int,
    figure: Figure,
    metric: str,
    distances: str,
    provenance: Mapping[str, object],
    beneath: Mapping[str, Path],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        backbones: at least one, all with the same trials.
        data: name of the data set.
        test_images: number of test images.
        titles: titles of the trials, by key.
        swept: number of training images of the sweep that chose each place; None for the backbones' default
            places.
        seeds: number of seeds that the scores are means over.
        figure: the scores as dots.
        metric: "top1" or "mean_per_class".
        distances: a sentence about the Fréchet distances; empty where nothing was generated.
        provenance: rows of the closing table.
        beneath: reports of the probes, relative to this report, by title.
    """
    if seeds > 1:
        uncertainty = f"means over {counted(seeds, 'seed')} with their standard deviation"
    else:
        uncertainty = "with 95 % intervals of the test images" if metric == "top1" else "of one seed"
    rows: list[tuple[object, ...]] = [
        (
            backbone.name,
            f"{backbone.place[0]}, {bracketed(backbone.place[1], backbone.log_snr)}",
            *(_cell(backbone.scores[trial], seeds, metric) for trial in titles),
        )
        for backbone in backbones
    ]
    caption = f"{_METRICS[metric]} in per cent on {counted(test_images, 'test image')}, {uncertainty}."
    table = Table(("Backbone", "Block, t (log-SNR)", *titles.values()), rows, caption)
    picture = Picture(figure, "The accuracies of the table.", "Accuracy of every backbone in every trial")
    sections = [Section("Result", parts=(picture, table)), _networks(backbones, distances)]
    if any(backbone.ece for backbone in backbones):
        sections.append(_calibration(backbones, titles))
    if any(backbone.effective_rank is not None for backbone in backbones):
        sections.append(_geometry(backbones))
    if len(backbones) > 1:
        sections.append(_differences(backbones, titles, seeds))
    sections += runs_beneath(beneath)
    places = (
        "at its default block and noise step"
        if swept is None
        else f"where accuracy was highest in a sweep over {counted(swept, 'training image')}, whose labels "
        "come on top of those of few labels"
    )
    lead = (
        f"{counted(len(backbones), 'frozen backbone')} on {data}, with the same heads, "
        f"images and labels. Each backbone is read {places}."
    )
    return render("Comparison of frozen backbones", lead, sections, provenance)


def _networks(backbones: Sequence[BackboneScores], distances: str) -> Section:
    """Return the section on what the networks cost, and on what they generate."""
    columns: tuple[str, ...] = ("Backbone", "Parameters", "Relative speed")
    rows: list[tuple[object, ...]] = [
        (backbone.name, backbone.parameters, f"{backbone.relative_speed:.2f}") for backbone in backbones
    ]
    if distances:
        columns = (*columns, "Fréchet distance")
        rows = [(*row, _distance(backbone.frechet)) for row, backbone in zip(rows, backbones, strict=True)]
    caption = (
        "Relative speed: images per second of feature extraction, divided by those of the first backbone. "
        f"{distances}"
    )
    return Section("Networks", parts=(Table(columns, rows, caption.strip()),))


def _calibration(backbones: Sequence[BackboneScores], titles: Mapping[str, str]) -> Section:
    """Return the section on the expected calibration errors."""
    rows: list[tuple[object, ...]] = [
        (backbone.name, *(percent(backbone.ece.get(trial)) for trial in titles)) for backbone in backbones
    ]
    caption = "Expected calibration error in per cent, 15 bins, means over seeds; 0 is calibrated."
    return Section("Calibration", parts=(Table(("Backbone", *titles.values()), rows, caption),))


def _geometry(backbones: Sequence[BackboneScores]) -> Section:
    """Return the section on measures of the features alone."""

    def cell(value: float | None, digits: int) -> str | None:
        return None if value is None else f"{value:.{digits}f}"

    rows: list[tuple[object, ...]] = [
        (
            backbone.name,
            cell(backbone.effective_rank, 1),
            cell(backbone.alignment, 3),
            cell(backbone.uniformity, 3),
            cell(backbone.cknna, 3),
        )
        for backbone in backbones
    ]
    caption = (
        "Of the place's maps, averaged over positions. Effective rank: RankMe. Alignment: mean squared "
        "distance of an image and its mirror image as unit vectors, 0 is best. Uniformity: from -8, the "
        "best, to 0 (Wang and Isola, 2020). CKNNA: alignment of nearest neighbours with those of "
        f"{backbones[0].name}, at most 1 (Huh et al., 2024)."
    )
    table = Table(("Backbone", "Effective rank", "Alignment", "Uniformity", "CKNNA"), rows, caption)
    return Section("Features without labels", parts=(table,))


def _differences(backbones: Sequence[BackboneScores], titles: Mapping[str, str], seeds: int) -> Section:
    """Return the section of differences from the first backbone."""
    rows: list[tuple[object, ...]] = []
    for backbone in backbones[1:]:
        points = ([100 * share for share in backbone.differences[trial]] for trial in titles)
        rows.append((backbone.name, *("{:+.2f} ± {:.2f}".format(*pair) for pair in points)))
    first_seed = ", in the first seed" if seeds > 1 else ""
    caption = f"Top-1 accuracy in points, paired on the same test images, with 95 % intervals{first_seed}."
    text = "Where an interval contains 0, the difference is not significant on these images."
    table = Table(("Backbone", *titles.values()), rows, caption)
    return Section(f"Difference from {backbones[0].name}", text, (table,))


def _distance(frechet: float | None) -> str:
    return "generates none" if frechet is None else f"{frechet:.4g}"


def _cell(score: Score, seeds: int, metric: str) -> str:
    low, high = score.interval
    if seeds > 1:
        return f"{100 * score.value:.2f} ± {50 * (high - low):.2f}"
    if metric != "top1":
        return f"{100 * score.value:.2f}"
    return f"{100 * score.value:.2f} ({interval(score.interval)})"
