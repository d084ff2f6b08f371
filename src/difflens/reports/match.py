"""The pictures and reports of `difflens match`."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from difflens.errors import counted
from difflens.reports.html import Picture, Section, Table, render
from difflens.reports.style import WIDTH
from difflens.results.match import KeypointResult, MatchedPoint, MatchResult

_LINES = 30  # the most points that lines connect
_NUMBERED = 100  # the most points that have numbers beside them
_DOT: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 1, "clip_on": False}


def match_figure(source: Tensor, target: Tensor, matches: Sequence[MatchedPoint]) -> Figure:
    """Draw two pictures side by side, with points that match in one colour.

    The colour tells the place in the first picture: red grows to the right, green downwards. A line goes from
    each of few points to its match; it is dashed where the match does not match back. Numbers are those of
    the table.

    Args:
        source, target: uint8, (C, H, W).
        matches: the points, in pixels.
    """
    shares = [image.shape[-1] / image.shape[-2] for image in (source, target)]
    figure = Figure(figsize=(WIDTH, (WIDTH - 0.2) / sum(shares)))
    gap = 0.2 / WIDTH
    widths = [(1 - gap) * share / sum(shares) for share in shares]
    axes = [figure.add_axes((0, 0, widths[0], 1)), figure.add_axes((widths[0] + gap, 0, widths[1], 1))]
    for each, image in zip(axes, (source, target), strict=True):
        pixels = image.permute(1, 2, 0).squeeze(2).numpy()
        each.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        each.set_axis_off()
    for number, found in enumerate(matches):
        right, down = found.point[0] / source.shape[-1], found.point[1] / source.shape[-2]
        colour = tuple(min(max(part, 0.0), 1.0) for part in (right, down, 1 - right))
        if len(matches) <= _LINES:
            line = ConnectionPatch(
                found.point,
                found.match,
                "data",
                "data",
                axesA=axes[0],
                axesB=axes[1],
                color=colour,
                linewidth=1.4,
                linestyle="-" if found.mutual else (0, (4, 3)),
            )
            figure.add_artist(line)
        for each, (x, y) in zip(axes, (found.point, found.match), strict=True):
            each.plot([x], [y], "o", color=colour, **_DOT)
            if len(matches) <= _NUMBERED:
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
                each.annotate(
                    str(number + 1),
                    (x, y),
                    xytext=(6, 5),
                    textcoords="offset points",
                    annotation_clip=False,
                    size=8 if len(matches) <= _LINES else 6,
                    bbox=box,
                )
    return figure


def match_report(
    *, figure: Figure, result: MatchResult, asked: int, place: str, provenance: Mapping[str, object]
) -> str:
    """Return the report on two pictures as one self-contained HTML document.

    Args:
        figure: of `match_figure`.
        asked: number of points that were searched.
        place: the block and the noise step, in words.
        provenance: rows of the closing table.
    """
    both = sum(each.mutual for each in result.matches)
    mutual = len(result.matches) < asked  # the others are left out
    rows: list[tuple[object, ...]] = [
        (
            str(number),
            *(f"{round(x)}, {round(y)}" for x, y in (each.point, each.match)),
            f"{each.score:.3f}",
            *(() if mutual else ("yes" if each.mutual else "no",)),
        )
        for number, each in enumerate(result.matches, start=1)
    ]
    columns = ("Point", "First picture", "Second picture", "Cosine", *(() if mutual else ("Matches back",)))
    text = (
        f"{counted(asked, 'point')} searched, of which {both:,} match{'es' * (both == 1)} back to within one "
        f"cell of the feature map.{' Only these are shown.' if mutual else ''} A similar position "
        "exists for every point, also where the second picture does not show it."
    )
    lines = "" if both == len(rows) or len(rows) > _LINES else " Dashed lines do not match back."
    picture = Picture(
        figure,
        f"Points of the first picture, and in the same colour their matches in the second.{lines}",
        "Two pictures with points that correspond",
    )
    table = Table(columns, rows, "Positions are x, y in pixels from the upper left.")
    parts = (picture, table) if rows else (picture,)
    first, second = (PurePath(path).name for path in result.pictures)
    lead = f"Points of {first} in {second}, by the features of {place}."
    return render("Matched points", lead, [Section("Matches", text, parts)], provenance)


def keypoint_report(
    *, result: KeypointResult, data: str, place: str, provenance: Mapping[str, object]
) -> str:
    """Return the report on a data set of pairs as one self-contained HTML document.

    Args:
        data: the name of the pairs.
        place: the block and the noise step, in words.
        provenance: rows of the closing table.
    """
    columns = ("Class", "Pairs", "Points", "Box, %", "Box by pair, %", "Image, %", "Image by pair, %")
    rows: list[tuple[object, ...]] = [*result.rows()]
    alpha = f"{result.alpha:g}"
    caption = (
        f"A point is correct within {alpha} x the longer side of the object's box, or of the image. Columns "
        "by pair average the shares of pairs; the others count all points alike."
    )
    table = Table(columns, rows, caption, best=len(rows) - 1)
    section = Section(f"PCK@{alpha} by class", "", (table,))
    return render("Correct keypoints", f"Pairs of {data}, by the features of {place}.", [section], provenance)
