"""The report of `difflens compare`: one table, one plot, and how sure the differences are."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from difflens.reports.html import Picture, Section, Table, render
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
) -> str:
    """One self-contained HTML document.

    Args:
        backbones: at least one, all with the same trials.
        data: its name.
        test_images: how many were scored.
        titles: of the trials, by their keys.
        swept: over how many training images each place was chosen; None: it is the backbone's own choice.
        seeds: over how many the scores are means.
        figure: the scores as dots.
        metric: "top1" or "mean_per_class".
        distances: what the Fréchet distances are; empty if nothing was drawn.
        provenance: rows of the closing table.
    """
    trials, names = list(titles), list(titles.values())
    spread = (
        f"means over {seeds} seeds with their standard deviation" if seeds > 1
        else "with 95 % intervals of the test images" if metric == "top1" else "of one seed"
    )  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (each.name, "{}, {}".format(*each.place),
         *(_cell(each.scores[trial], seeds, metric) for trial in trials), each.parameters,
         f"{each.relative_speed:.2f}", *([_distance(each.frechet)] if distances else []))
        for each in backbones
    ]  # fmt: skip
    table = Table(
        ("Backbone", "Block, t", *names, "Parameters", "Images/s, relative", *(["Fréchet distance"] if distances else [])), rows,
        f"{_METRICS[metric]} in per cent on {test_images:,} test images, {spread}. Speed is that of reading the "
        f"features, relative to the first backbone. {distances}".strip(),
    )  # fmt: skip
    parts: list[Table | Picture] = [
        Picture(figure, "The same figures.", "Accuracy of every backbone in every trial"),
        table,
    ]
    sections = [Section("Result", parts=tuple(parts))]
    if len(backbones) > 1:
        differences: list[tuple[object, ...]] = [
            (each.name, *("{:+.2f} ± {:.2f}".format(*(100 * x for x in each.differences[trial])) for trial in trials))
            for each in backbones[1:]
        ]  # fmt: skip
        caption = "Top-1 in points, paired on the same test images, with 95 % intervals" + (
            ", in the first seed." if seeds > 1 else "."
        )
        sections.append(Section(
            f"Difference from {backbones[0].name}", "Where an interval contains 0, the two cannot be told apart on these images.",
            (Table(("Backbone", *names), differences, caption),),
        ))  # fmt: skip
    lead = (
        f"{len(backbones)} frozen backbone{'s' * (len(backbones) != 1)} on {data}: the same heads, images and labels for "
        "all, each backbone read "
        + (
            "where it says it is best read."
            if swept is None
            else f"at the block and noise step that did best in a sweep over {swept:,} training images."
        )
    )
    return render("Backbones compared", lead, sections, provenance)


def _distance(frechet: float | None) -> str:
    return "draws none" if frechet is None else f"{frechet:.4g}"


def _cell(score: Score, seeds: int, metric: str) -> str:
    low, high = score.interval
    if seeds > 1:
        return f"{100 * score.value:.2f} ± {50 * (high - low):.2f}"
    if metric != "top1":
        return f"{100 * score.value:.2f}"
    return f"{100 * score.value:.2f} ± {50 * (high - low):.1f}"
