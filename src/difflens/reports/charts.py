"""Numbers for reports: how well heads do, where, and what they confuse.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, pairwise
from math import ceil, inf
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

ACCENT = "#2f5bd0"
BASELINE = "#6f7680"
INK = "#20242b"
LINE = "#e6e8ec"
# to tell a few lines apart; the first is the one that matters
_KINDS = (ACCENT, "#d1495b", "#1f9e89", "#d98e04", "#7b5ea7")

# inches, to suit the report
WIDTH = 9.5
_TEXT_WIDTH = 7.3
_CELL_TEXT = 30  # the most classes whose counts fit into the cells of a confusion matrix
_LABELS = 25  # the most labels on an axis of more classes than that
_HEAT_TEXT = (12, 26)  # the most rows and columns of a heat map whose cells hold numbers
_CLASSES = 40  # the most classes that are shown one by one


def heat_map(
    accuracy: Tensor,
    blocks: Sequence[int],
    noise_steps: Sequence[int],
    roles: Sequence[str],
    best: tuple[int, int] | None,
) -> Figure:
    """How well every block does at every noise step: a row a noise step, a column a block.

    The lowest fifth of the cells share one colour, so that differences among the good ones
    are seen. Cells hold per cent; beyond 12 x 26 cells there are colours only.

    Args:
        accuracy: (T, B) shares in [0, 1]; NaN where nothing was measured.
        blocks: indices of the B columns.
        noise_steps: the t of the T rows.
        roles: the part of the network each column belongs to ("encoder", "middle", "decoder").
        best: (block, noise step) of the cell to outline.
    """
    count, width = len(noise_steps), len(blocks)
    _check(accuracy, blocks, noise_steps)
    assert len(roles) == width, f"{width} blocks, but {len(roles)} roles"
    values = 100 * accuracy.detach().cpu().double()
    cell_width = min(0.62, (WIDTH - 1.7) / width)
    cell_height = min(0.36, 8 / count)
    tall = cell_height * count > 1.5
    figure = Figure(
        figsize=(max(3.2, cell_width * width + 1.7), cell_height * count + (1.0 if tall else 1.6)),
        layout="constrained",
    )
    axes = figure.subplots()
    low, high = _range(values)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=LINE)
    picture = axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto")
    columns, rows = (range(0, n, ceil(n / most)) for n, most in ((width, 40), (count, 30)))
    axes.set_xticks(columns, [f"{blocks[k]}" for k in columns], size=8 if width > 15 else 9)
    axes.set_yticks(rows, [f"{noise_steps[k]}" for k in rows], size=9)
    axes.set_xlabel("block", color=INK)
    axes.set_ylabel("noise step t", color=INK)
    _quiet(axes)
    _cell_borders(axes, count, width)
    if count <= _HEAT_TEXT[0] and width <= _HEAT_TEXT[1]:
        size = 9 if cell_width > 0.45 else 7
        for row, column in (~values.isnan()).nonzero().tolist():
            value = float(values[row, column])
            dark = (value - low) / (high - low) < 0.6
            colour = "white" if dark else INK
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=size, color=colour)
    _role_brackets(figure, axes, roles, cell_width)
    if best is not None:
        corner = (blocks.index(best[0]) - 0.5, noise_steps.index(best[1]) - 0.5)
        outline = Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False, zorder=3)
        outline.set_path_effects([withStroke(linewidth=4, foreground="white")])
        axes.add_patch(outline)
    bar = figure.colorbar(
        picture, ax=axes, location="right" if tall else "bottom", extend="min" if values.lt(low).any() else "neither",
        pad=0.02, **({"aspect": 25} if tall else {"shrink": 0.8, "aspect": 40}),
    )  # fmt: skip
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.set_label("top-1 accuracy, %", size=8, color=INK)
    _quiet_bar(bar)
    return figure


def accuracy_curves(
    accuracy: Tensor, blocks: Sequence[int], noise_steps: Sequence[int], best: tuple[int, int] | None
) -> Figure:
    """The numbers of `heat_map` as lines: over the blocks, and over the noise steps for the five best blocks.

    Of one noise step the second panel is left out, of one block the first.

    Args:
        accuracy: (T, B) shares in [0, 1]; NaN where nothing was measured.
        blocks: indices of the B columns.
        noise_steps: the t of the T rows.
        best: (block, noise step) to mark with a ring.
    """
    _check(accuracy, blocks, noise_steps)
    values = 100 * accuracy.detach().cpu().double()
    by_block, by_noise = len(blocks) > 1 or len(noise_steps) == 1, len(noise_steps) > 1
    panels = by_block + by_noise
    figure = Figure(figsize=(WIDTH if panels > 1 else _TEXT_WIDTH, 3.7), layout="constrained")
    drawn = figure.subplots(1, panels, squeeze=False, width_ratios=[1.45, 1][:panels])[0]
    if by_block:
        colours = _dark_to_light(len(noise_steps))
        lines = [(f"{t}", colours[row], blocks, values[row]) for row, t in enumerate(noise_steps)]
        _curves(drawn[0], lines, "noise step t")
        drawn[0].set_xlabel("block", color=INK)
        _ticks_at(drawn[0], blocks, 0.06)
    if by_noise:
        ranked = _best_blocks(values, blocks, best)
        chosen = [
            (f"{block}", colour, noise_steps, values[:, blocks.index(block)])
            for block, colour in zip(ranked, _KINDS, strict=False)
        ]
        _curves(drawn[-1], chosen, "best blocks" if len(ranked) > len(_KINDS) else "block")
        drawn[-1].set_xlabel("noise step t", color=INK)
        _noise_axis(drawn[-1], noise_steps)
    if best is not None:
        value = float(values[noise_steps.index(best[1]), blocks.index(best[0])])
        for axes, place in zip(drawn, [best[0]] * by_block + [best[1]] * by_noise, strict=True):
            axes.plot(place, value, "o", markersize=10, fillstyle="none", color=INK, markeredgewidth=1.2)
    drawn[0].set_ylabel("top-1 accuracy, %", color=INK)
    return figure


def similarity_map(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str],
    roles: tuple[Sequence[str], Sequence[str]] = ((), ()),
    marks: Sequence[tuple[int, int]] = (),
) -> Figure:
    """How alike things are, pair by pair, on one scale from 0 to 1.

    Up to 12 x 12 cells hold numbers.

    Args:
        values: (R, C) similarities; negative ones share the colour of 0, NaN is grey.
        rows, columns: their names.
        titles: of rows and columns.
        roles: the part of the network of each row and column ("encoder", "middle", "decoder"), or empty.
        marks: (row, column) of cells to frame.
    """
    height, width = len(rows), len(columns)
    assert values.shape == (height, width), f"{height} x {width} names, but values {tuple(values.shape)}"
    values = values.detach().cpu().double()
    cell = min(0.5, 6.2 / max(height, width))
    figure = Figure(
        figsize=(max(3.0, cell * width + 1.9), max(2.2, cell * height + 1.2)), layout="constrained"
    )
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=LINE)
    picture = axes.imshow(values.clamp(min=0).numpy(), cmap=colours, vmin=0, vmax=1)
    ticks = [range(0, count, ceil(count / 40)) for count in (width, height)]
    size = 8 if cell < 0.35 else 9
    axes.set_xticks(ticks[0], [columns[k] for k in ticks[0]], size=size, parse_math=False)
    axes.set_yticks(ticks[1], [rows[k] for k in ticks[1]], size=size, parse_math=False)
    axes.set_ylabel(shortened(titles[0], 44), color=INK, parse_math=False)
    axes.set_xlabel(shortened(titles[1], 44), color=INK, parse_math=False)
    _quiet(axes)
    for where, names in ((axes.axvline, roles[1]), (axes.axhline, roles[0])):
        for k, (role, following) in enumerate(pairwise(names)):
            if role != following:
                where(k + 0.5, color="white", linewidth=1.2)
    if roles[1]:
        _role_brackets(figure, axes, roles[1], cell)
    if max(height, width) <= 12:
        for row, column in (~values.isnan()).nonzero().tolist():
            value = float(values[row, column])
            colour = "white" if value < 0.6 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=8, color=colour)
    for row, column in marks:
        half = 0.42
        axes.add_patch(Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, edgecolor="#d1495b",
                                 linewidth=min(1.6, 5 * cell)))  # fmt: skip
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("CKA", size=8, color=INK)
    _quiet_bar(bar)
    return figure


def confusion_matrix(matrix: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Which classes are taken for which.

    Colours are shares of a true class, on a square-root scale, so that rare confusions are seen. Cells hold
    counts (none is 0); beyond 30 classes there are colours only, and some of the labels.

    Args:
        matrix: (K, K) counts; rows are true classes, columns predictions.
        classes: K names.
        title: above the matrix; may be empty.
    """
    count = len(classes)
    assert matrix.shape == (count, count), f"{count} classes, but the matrix is {tuple(matrix.shape)}"
    matrix = matrix.cpu()
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    small = count <= _CELL_TEXT
    side = min(WIDTH, max(4.0, 1.8 + (0.5 if small else 0.25) * count))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, count, 1 if small else ceil(count / _LABELS))
    names = [shortened(classes[k]) for k in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.set_title(title, color=INK, parse_math=False)
    _quiet(axes)
    if small:
        size = 9 if count <= 15 else 6
        for row, column in matrix.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.35 else INK
            text = f"{int(matrix[row, column])}"
            axes.text(column, row, text, ha="center", va="center", size=size, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    marks = (0, 0.01, 0.05, 0.2, 0.5, 1)
    bar.set_ticks([mark**0.5 for mark in marks], labels=[f"{100 * mark:g} %" for mark in marks])
    bar.set_label("of the true class", size=8, color=INK)
    _quiet_bar(bar)
    return figure


def accuracy_bars(
    names: Sequence[str],
    top1: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    baseline_names: Collection[str] = (),
) -> Figure:
    """Accuracies as dots with their intervals, from top to bottom; a dotted line marks the best baseline.

    Args:
        names: of the rows.
        top1: shares in [0, 1].
        intervals: (low, high) shares around them.
        baseline_names: those of `names` to show in grey.
    """
    baselines = [value for name, value in zip(names, top1, strict=True) if name in baseline_names]
    return _dots(
        list(zip(names, top1, intervals, strict=True)), range(len(names)), 0.36, "top-1 accuracy, %",
        mark=max(baselines, default=None), grey=baseline_names,
    )  # fmt: skip


def protocol_dots(
    names: Sequence[str], scores: Mapping[str, Sequence[tuple[float, tuple[float, float]]]]
) -> Figure:
    """Accuracies of several things by several protocols: a row a name, a colour a protocol.

    Args:
        names: of the rows, from top to bottom.
        scores: by protocol (at most five), for each name a share in [0, 1] and the interval around it.
    """
    assert len(scores) <= len(_KINDS), f"{len(scores)} protocols"
    height = 0.28 + 0.16 * len(scores)
    figure = Figure(figsize=(_TEXT_WIDTH, 1.3 + height * len(names)), layout="constrained")
    axes = figure.subplots()
    for k, (protocol, colour) in enumerate(zip(scores, _KINDS, strict=False)):
        shift = (k - (len(scores) - 1) / 2) * 0.16 / height
        for row, (value, (low, high)) in enumerate(scores[protocol]):
            place = row + shift
            axes.plot(
                [100 * low, 100 * high],
                [place] * 2,
                color=colour,
                linewidth=4,
                alpha=0.3,
                solid_capstyle="round",
            )
            axes.plot(100 * value, place, "o", color=colour, markersize=5, label=None if row else protocol)
    axes.set_yticks(range(len(names)), [shortened(name, 44) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("accuracy, %", color=INK)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color=LINE, linewidth=0.8)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=len(scores),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    _quiet(axes)
    return figure


def share_bars(shares: Mapping[str, float], label: str) -> Figure:
    """Parts of a whole as bars, from top to bottom; a negative one points left.

    Args:
        shares: by name.
        label: what they are shares of.
    """
    figure = Figure(figsize=(_TEXT_WIDTH, 0.9 + 0.3 * len(shares)), layout="constrained")
    axes = figure.subplots()
    values = [100 * value for value in shares.values()]
    axes.barh(range(len(shares)), values, height=0.6, color=ACCENT)
    for row, value in enumerate(values):
        axes.annotate(
            f"{value:.1f}",
            (max(value, 0), row),
            (5, 0),
            textcoords="offset points",
            va="center",
            size=9,
            color=INK,
        )
    axes.set_yticks(range(len(shares)), [shortened(name, 44) for name in shares], parse_math=False)
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.axvline(0, color=BASELINE, linewidth=0.8)
    axes.set_xlabel(f"{label}, %", color=INK)
    axes.margins(x=0.1)
    _quiet(axes)
    return figure


def per_class_bars(
    per_class: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]] | None,
    label: str = "accuracy, %",
) -> Figure:
    """Accuracy by class, worst on top, as `accuracy_bars`; a dotted line marks the mean over all classes.

    Of more than 40 classes the 20 worst and the 20 best are shown.

    Args:
        per_class: shares in [0, 1]; classes with None are left out, and there is one without.
        intervals: (low, high) shares around them, by class; None shows dots only.
        label: of the axis, where the shares are something else.
    """
    known = {name: value for name, value in per_class.items() if value is not None}
    worst, best = worst_and_best(per_class)
    rows = [
        (name, known[name], (intervals or {}).get(name, (known[name], known[name])))
        for name in (*worst, *best)
    ]
    hidden = len(known) - len(rows)
    # a row is left free for the classes that are not shown
    places = [place + (place >= len(worst) and hidden > 0) for place in range(len(rows))]
    figure = _dots(
        rows, places, 0.36 if len(rows) <= 20 else 0.22, label, mark=sum(known.values()) / len(known)
    )
    if hidden:
        (axes,) = figure.axes
        text = f"{hidden} more between these"
        axes.text(
            0, len(worst), text, transform=axes.get_yaxis_transform(), size=9, color=BASELINE, va="center"
        )
    return figure


def worst_and_best(per_class: Mapping[str, float | None]) -> tuple[list[str], list[str]]:
    """Names of classes by accuracy, the worst first: all of them and none, or of many the 20 worst and 20 best.

    Args:
        per_class: shares in [0, 1]; classes with None are left out.
    """
    known = {name: value for name, value in per_class.items() if value is not None}
    names = sorted(known, key=lambda name: known[name])
    if len(names) <= _CLASSES:
        return names, []
    return names[: _CLASSES // 2], names[-_CLASSES // 2 :]


def loss_curve(logs: Sequence[Sequence[Mapping[str, Any]]], by: str = "epoch") -> Figure:
    """Training loss by epoch, or by what else `by` names, a thin line a run.

    Args:
        logs: of each run its records, of which those with "epoch" and "loss" are drawn.
    """
    figure = Figure(figsize=(_TEXT_WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for log in logs:
        points = [(record[by], record["loss"]) for record in log if by in record and "loss" in record]
        marker = "o" if len(points) == 1 else ""  # one point makes no line
        axes.plot(
            *zip(*points, strict=True), color=ACCENT, marker=marker, alpha=0.7 if len(logs) > 1 else 1,
            linewidth=1.1 if len(logs) > 1 else 1.8,
        )  # fmt: skip
    axes.set_xlabel(by, color=INK)
    axes.set_ylabel("training loss", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.margins(x=0.02)
    _quiet(axes)
    return figure


def shortened(name: str, length: int = 24) -> str:
    """One line of at most `length` characters."""
    line = " ".join(name.split())
    return line if len(line) <= length else f"{line[: length - 1]}\u2026"


def _check(accuracy: Tensor, blocks: Sequence[int], noise_steps: Sequence[int]) -> None:
    shape = (len(noise_steps), len(blocks))
    assert accuracy.shape == shape, f"{shape} noise steps and blocks, but accuracies {tuple(accuracy.shape)}"


def _range(values: Tensor) -> tuple[float, float]:
    """Of the colours: from the 20th percentile to the maximum, and a point at least."""
    known = values[~values.isnan()]
    if not len(known):
        return 0.0, 100.0
    low, high = float(known.quantile(0.2)), float(known.max())
    return min(low, high - 1), high


def _cell_borders(axes: Axes, rows: int, columns: int) -> None:
    axes.set_xticks([k + 0.5 for k in range(columns - 1)], minor=True)
    axes.set_yticks([k + 0.5 for k in range(rows - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _role_brackets(figure: Figure, axes: Axes, roles: Sequence[str], cell_width: float) -> None:
    """Names of the network's parts above their columns, with a line under each."""
    columns = axes.get_xaxis_transform()  # columns by rows of the axes' height
    above = columns + ScaledTranslation(0, 4 / 72, figure.dpi_scale_trans)
    gap = 0.025 / cell_width
    left = -0.5
    free = -1.0  # up to where the lower line of names is taken
    for role, run in groupby(roles):
        right = left + len(list(run))
        middle, half = (left + right) / 2, 0.036 * len(role) / cell_width  # of 8 point letters, in columns
        raised = middle - half < free
        free = free if raised else middle + half
        axes.plot(
            [left + gap, right - gap], [1, 1], transform=above, color=BASELINE, linewidth=1.2, clip_on=False,
            solid_capstyle="butt",
        )  # fmt: skip
        axes.annotate(
            role, (middle, 1), (0, 19 if raised else 8), xycoords=columns, textcoords="offset points",
            ha="center", size=8, color=BASELINE, parse_math=False,
        )  # fmt: skip
        left = right


def _dark_to_light(count: int) -> list[tuple[float, ...]]:
    """Colours in order, ending before the yellow that white paper swallows."""
    plasma = matplotlib.colormaps["plasma"]  # not that of the heat map: these are no accuracies
    return [plasma(0.88 * k / max(1, count - 1)) for k in range(count)]


def _best_blocks(values: Tensor, blocks: Sequence[int], best: tuple[int, int] | None) -> list[int]:
    """Blocks by the best they reach at any noise step, the block of `best` first; unmeasured ones left out."""
    reached = dict(zip(blocks, values.nan_to_num(-1.0).amax(0).tolist(), strict=True))
    chosen = best[0] if best else None
    return sorted((b for b in blocks if reached[b] >= 0), key=lambda b: (b != chosen, -reached[b]))


def _curves(axes: Axes, lines: Sequence[tuple[str, Any, Sequence[int], Tensor]], title: str) -> None:
    """Lines of (name, colour, places, values) with a legend on their right, which names at most 12."""
    for k, (name, colour, places, values) in enumerate(lines):
        named = k % ceil(len(lines) / 12) == 0
        axes.plot(
            places, values.numpy(), "o-", color=colour, linewidth=1.4, markersize=3 if len(places) <= 30 else 1.5,
            label=name if named else None,
        )  # fmt: skip
    if not lines:
        return
    legend = axes.legend(
        title=title, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8, handlelength=1.2,
        labelcolor=INK, title_fontsize=8, borderaxespad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    _quiet(axes)


def _noise_axis(axes: Axes, noise_steps: Sequence[int]) -> None:
    """By the logarithm of t, from the first that is not 0, where most of the noise steps are small ones."""
    positive = sorted(t for t in noise_steps if t > 0)
    if len(positive) > 2 and positive[len(positive) // 2] < positive[-1] / 4:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    _ticks_at(axes, noise_steps, 0.11)


def _ticks_at(axes: Axes, values: Sequence[int], gap: float) -> None:
    """Ticks at what was measured, no closer than `gap` of the axis."""
    places = axes.transScale.transform([(value, 0) for value in values])[:, 0]
    room = gap * (places.max() - places.min())
    ticks: list[int] = []
    last = -inf
    for value, place in zip(values, places, strict=True):
        if place - last >= room:
            ticks.append(value)
            last = place
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.minorticks_off()


def _dots(
    rows: Sequence[tuple[str, float, tuple[float, float]]],
    places: Sequence[int],
    height: float,
    label: str,
    mark: float | None,
    grey: Collection[str] = (),
) -> Figure:
    """Rows of (name, share, interval) from top to bottom at `places`, `height` inches apart; a dotted line at `mark`."""
    count = places[-1] + 1
    figure = Figure(figsize=(_TEXT_WIDTH, 0.9 + height * count), layout="constrained")
    axes = figure.subplots()
    wide = height > 0.3
    for place, (name, value, (low, high)) in zip(places, rows, strict=True):
        colour = BASELINE if name in grey else ACCENT
        ends = [100 * low, 100 * high]
        axes.plot(ends, [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(100 * value, place, "o", color=colour, markersize=7 if wide else 5)
        axes.annotate(
            f"{100 * value:.1f}", (100 * high, place), (9, 0), textcoords="offset points", va="center",
            size=10 if wide else 8, color=colour if name in grey else INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    if mark is not None:
        axes.axvline(100 * mark, color=BASELINE, linewidth=1, linestyle=(0, (1, 3)), zorder=0)
    names = [shortened(name, 44) for name, *_ in rows]
    axes.set_yticks(places, names, parse_math=False, size=10 if wide else 8)
    axes.set_ylim(count - 0.4, -0.6)
    axes.margins(x=0.09)
    axes.set_xlabel(label, color=INK)
    left, right = axes.get_xlim()  # the margins may leave 0 .. 100, the ticks may not
    ticks = [tick for tick in axes.get_xticks() if max(left, 0) <= tick <= min(right, 100)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    _quiet(axes)
    return figure


def _quiet(axes: Axes) -> None:
    axes.tick_params(length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _quiet_bar(bar: Any) -> None:
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
