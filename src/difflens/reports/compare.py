"""The report of `difflens rivals`: one table, one plot, and how sure the differences are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from difflens.backbones.maps import Place
from difflens.reports.html import Picture, Section, Table, render

_METRICS = {"top1": "Top-1 accuracy", "mean_per_class": "Mean accuracy per class"}


@dataclass(frozen=True)
class Score:
    """An accuracy, a share in [0, 1], with its 95 % interval, or of several seeds with their standard deviation."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Rival:
    """One backbone and how it did.

    Attributes:
        name: its spec.
        place: where it was read, block and noise step.
        parameters: of the whole backbone, without heads.
        relative_speed: images per second of reading its features, over those of the first backbone.
        scores: by trial.
        differences: by trial, from the first backbone's top-1 on the same test images, in the first seed: shares, with
            the half-width of the 95 % interval.
        frechet: Fréchet distance of its samples to test images; None: it draws none.
    """

    name: str
    place: Place
    parameters: int
    relative_speed: float
    scores: Mapping[str, Score]
    differences: Mapping[str, tuple[float, float]]
    frechet: float | None = None

    def record(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "backbone": self.name,
            "block": self.place[0],
            "noise_step": self.place[1],
            "parameters": self.parameters,
            "relative_speed": round(self.relative_speed, 3),
            "frechet_distance": self.frechet,
            "accuracy": {key: score.value for key, score in self.scores.items()},
            "interval": {key: list(score.interval) for key, score in self.scores.items()},
            "difference_from_first": {key: list(pair) for key, pair in self.differences.items()},
        }


def rivals_report(
    *,
    rivals: Sequence[Rival],
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
        rivals: at least one, all with the same trials.
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
        (rival.name, "{}, {}".format(*rival.place),
         *(_cell(rival.scores[each], seeds, metric) for each in trials), rival.parameters,
         f"{rival.relative_speed:.2f}", *([_distance(rival.frechet)] if distances else []))
        for rival in rivals
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
    if len(rivals) > 1:
        differences: list[tuple[object, ...]] = [
            (rival.name, *("{:+.2f} ± {:.2f}".format(*(100 * x for x in rival.differences[each])) for each in trials))
            for rival in rivals[1:]
        ]  # fmt: skip
        caption = "Top-1 in points, paired on the same test images, with 95 % intervals" + (
            ", in the first seed." if seeds > 1 else "."
        )
        sections.append(Section(
            f"Difference from {rivals[0].name}", "Where an interval contains 0, the two cannot be told apart on these images.",
            (Table(("Backbone", *names), differences, caption),),
        ))  # fmt: skip
    lead = (
        f"{len(rivals)} frozen backbone{'s' * (len(rivals) != 1)} on {data}: the same heads, images and labels for "
        "all, each backbone read "
        + (
            "where it says it is best read."
            if swept is None
            else f"at the block and noise step that did best in a sweep over {swept:,} training images."
        )
    )
    return render("Comparison of backbones", lead, sections, provenance)


def _distance(frechet: float | None) -> str:
    return "draws none" if frechet is None else f"{frechet:.4g}"


def _cell(score: Score, seeds: int, metric: str) -> str:
    low, high = score.interval
    if seeds > 1:
        return f"{100 * score.value:.2f} ± {50 * (high - low):.2f}"
    if metric != "top1":
        return f"{100 * score.value:.2f}"
    return f"{100 * score.value:.2f} ± {50 * (high - low):.1f}"
