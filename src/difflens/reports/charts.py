"""Charts for reports: accuracies, shares and losses as dots, bars and lines.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

from collections.abc import Collection, Mapping, Sequence
from math import ceil, isfinite, nan
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from difflens.processes.base import Level, bracketed, log_snr_text
from difflens.reports.style import ACCENT, BASELINE, INK, KINDS, LINE, TEXT_WIDTH, WIDTH, quiet, shortened

_CLASSES = 40  # the most classes that have a row each


def accuracy_curves(
    accuracy: Tensor, blocks: Sequence[int], log_snr: Mapping[Level, float], best: tuple[int, Level] | None
) -> Figure:
    """Draw the accuracies of `heat_maps.accuracy_map` as lines over blocks and over log-SNR.

    The second panel shows the five best blocks. Noise grows to the right, and noise steps stand above. The
    panel is left out for one noise step, the first panel for one block.

    Args:
        accuracy: (T, B) shares in [0, 1]; NaN where nothing was measured.
        blocks: indices of the B columns.
        log_snr: log-SNR of the T rows by noise step, from the least to the most noise.
        best: (block, noise step) to mark with a ring; None marks nothing.
    """
    noise_steps = list(log_snr)
    shape = (len(noise_steps), len(blocks))
    assert accuracy.shape == shape, f"{shape} noise steps and blocks, but accuracies {tuple(accuracy.shape)}"
    values = 100 * accuracy.detach().cpu().double()
    by_block, by_noise = len(blocks) > 1 or len(noise_steps) == 1, len(noise_steps) > 1
    panels = by_block + by_noise
    figure = Figure(figsize=(WIDTH if panels > 1 else TEXT_WIDTH, 3.7), layout="constrained")
    drawn = figure.subplots(1, panels, squeeze=False, width_ratios=[1.45, 1][:panels])[0]
    if by_block:
        colours = _dark_to_light(len(noise_steps))
        names = [bracketed(t, value) for t, value in log_snr.items()]
        lines = [(name, colours[row], blocks, values[row]) for row, name in enumerate(names)]
        _curves(drawn[0], lines, "noise step t\n(log-SNR)")
        drawn[0].set_xlabel("block", color=INK)
        _ticks_at(drawn[0], blocks, 0.06)
    positions = _noise_positions(list(log_snr.values()))
    if by_noise:
        ranked = _best_blocks(values, blocks, best)
        chosen = [
            (f"{block}", colour, positions, values[:, blocks.index(block)])
            for block, colour in zip(ranked, KINDS, strict=False)
        ]
        _curves(drawn[-1], chosen, "best blocks" if len(ranked) > len(KINDS) else "block")
        _noise_axis(drawn[-1], log_snr, positions)
    if best is not None:
        row = noise_steps.index(best[1])
        value = float(values[row, blocks.index(best[0])])
        for axes, position in zip(drawn, [best[0]] * by_block + [positions[row]] * by_noise, strict=True):
            axes.plot(position, value, "o", markersize=10, fillstyle="none", color=INK, markeredgewidth=1.2)
    drawn[0].set_ylabel("top-1 accuracy, %", color=INK)
    return figure


def accuracy_bars(
    names: Sequence[str],
    top1: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    baseline_names: Collection[str] = (),
) -> Figure:
    """Draw accuracies as dots with their intervals, from top to bottom; a dotted line marks the best
    baseline.

    Args:
        names: names of the rows.
        top1: shares in [0, 1].
        intervals: (low, high) shares around them.
        baseline_names: those of `names` to draw in grey.
    """
    rows = list(zip(names, top1, intervals, strict=True))
    best_baseline = max((share for name, share, _ in rows if name in baseline_names), default=None)
    return _dots(rows, range(len(names)), 0.36, "top-1 accuracy, %", mark=best_baseline, grey=baseline_names)


def protocol_dots(
    names: Sequence[str], scores: Mapping[str, Sequence[tuple[float, tuple[float, float]]]]
) -> Figure:
    """Draw accuracies by several protocols: one row a name, one colour a protocol.

    Args:
        names: names of the rows, from top to bottom.
        scores: by protocol (at most five), a share in [0, 1] and the interval around it for each name.
    """
    assert len(scores) <= len(KINDS), f"{len(scores)} protocols"
    height = 0.28 + 0.16 * len(scores)
    figure = Figure(figsize=(TEXT_WIDTH, 1.3 + height * len(names)), layout="constrained")
    axes = figure.subplots()
    for k, (protocol, colour) in enumerate(zip(scores, KINDS, strict=False)):
        shift = (k - (len(scores) - 1) / 2) * 0.16 / height
        for row, (value, interval) in enumerate(scores[protocol]):
            _dot(axes, row + shift, value, interval, colour, (4, 5), None if row else protocol)
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
    quiet(axes)
    return figure


def share_bars(shares: Mapping[str, float], label: str) -> Figure:
    """Draw shares of a whole as bars, from top to bottom; a negative share points left.

    Args:
        shares: by name; 1 is the whole.
        label: label of the axis, the whole in words.
    """
    figure = Figure(figsize=(TEXT_WIDTH, 0.9 + 0.3 * len(shares)), layout="constrained")
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
    quiet(axes)
    return figure


def per_class_bars(
    per_class: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float]] | None,
    label: str = "accuracy, %",
) -> Figure:
    """Draw the accuracy by class, the worst on top; a dotted line marks the mean over all classes.

    With more than 40 classes, only the 20 worst and the 20 best have a row.

    Args:
        per_class: shares in [0, 1], at least one; classes with None are left out.
        intervals: (low, high) shares around them, by class; None draws dots only.
        label: label of the axis.
    """
    accuracies = {name: value for name, value in per_class.items() if value is not None}
    worst, best = worst_and_best(per_class)
    intervals = intervals or {}
    rows = [
        (name, accuracies[name], intervals.get(name, (accuracies[name], accuracies[name])))
        for name in (*worst, *best)
    ]
    omitted = len(accuracies) - len(rows)
    # a row is left free for the classes without a row
    heights = [row + (row >= len(worst) and omitted > 0) for row in range(len(rows))]
    mean = sum(accuracies.values()) / len(accuracies)
    figure = _dots(rows, heights, 0.36 if len(rows) <= 20 else 0.22, label, mark=mean)
    if omitted:
        (axes,) = figure.axes
        text = f"{omitted} more between these"
        axes.text(
            0, len(worst), text, transform=axes.get_yaxis_transform(), size=9, color=BASELINE, va="center"
        )
    return figure


def worst_and_best(per_class: Mapping[str, float | None]) -> tuple[list[str], list[str]]:
    """Return two lists of classes, the lowest accuracy first.

    Up to 40 classes are all in the first list. With more, the lists are the 20 worst and the 20 best.

    Args:
        per_class: shares in [0, 1]; classes with None are left out.
    """
    accuracies = {name: value for name, value in per_class.items() if value is not None}
    names = sorted(accuracies, key=lambda name: accuracies[name])
    if len(names) <= _CLASSES:
        return names, []
    return names[: _CLASSES // 2], names[-_CLASSES // 2 :]


def loss_curve(logs: Sequence[Sequence[Mapping[str, Any]]], by: str = "epoch") -> Figure:
    """Draw the training loss, one line a run.

    Args:
        logs: the records of each run; those with `by` and "loss" are drawn.
        by: key of the records that is the horizontal axis, "epoch" or "iteration".
    """
    several = len(logs) > 1
    figure = Figure(figsize=(TEXT_WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for log in logs:
        points = [(record[by], record["loss"]) for record in log if by in record and "loss" in record]
        marker = "o" if len(points) == 1 else ""  # one point makes no line
        width, alpha = (1.1, 0.7) if several else (1.8, 1)
        axes.plot(*zip(*points, strict=True), color=ACCENT, marker=marker, alpha=alpha, linewidth=width)
    axes.set_xlabel(by, color=INK)
    axes.set_ylabel("training loss", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.margins(x=0.02)
    quiet(axes)
    return figure


def probe_curves(log: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what was measured during a pre-training by epoch: accuracies and effective rank, a line a place.

    Args:
        log: the records of a pre-training; those with "probe" are drawn, and there is at least one.
    """
    records = [record for record in log if "probe" in record]
    epochs = [record["epoch"] for record in records]
    series: dict[tuple[int, Level], dict[str, list[float]]] = {}
    for number, record in enumerate(records):
        for place in record["probe"]:
            lines = series.setdefault((place["block"], place["noise_step"]), {})
            for measure in ("ridge", "knn", "effective_rank"):
                line = lines.setdefault(measure, [nan] * len(records))
                factor = 1 if measure == "effective_rank" else 100
                line[number] = nan if place[measure] is None else factor * place[measure]
    panels = {"ridge": "ridge, %", "knn": "k-NN, %", "effective_rank": "effective rank"}
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    colours = _dark_to_light(len(series))
    drawn = figure.subplots(1, len(panels))
    for axes, (measure, title) in zip(drawn, panels.items(), strict=True):
        for colour, (place, values) in zip(colours, series.items(), strict=True):
            label = f"block {place[0]}, t = {place[1]}"
            size = 3 if len(epochs) <= 30 else 1.5
            axes.plot(
                epochs, values[measure], "o-", color=colour, linewidth=1.4, markersize=size, label=label
            )
        axes.set_xlabel("epoch", color=INK)
        axes.set_ylabel(title, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        quiet(axes)
    handles, labels = drawn[0].get_legend_handles_labels()
    columns = min(4, len(labels))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
    )
    return figure


def _dark_to_light(count: int) -> list[tuple[float, ...]]:
    """Return `count` colours from dark to light; the last ones, yellow, cannot be seen on white."""
    plasma = matplotlib.colormaps["plasma"]  # the heat map has another: these colours are not accuracies
    return [plasma(0.88 * k / max(1, count - 1)) for k in range(count)]


def _best_blocks(values: Tensor, blocks: Sequence[int], best: tuple[int, Level] | None) -> list[int]:
    """Return the measured blocks by their highest accuracy at any noise step, the block of `best` first."""
    highest = dict(zip(blocks, values.nan_to_num(-1.0).amax(0).tolist(), strict=True))
    chosen = best[0] if best else None
    return sorted((b for b in blocks if highest[b] >= 0), key=lambda b: (b != chosen, -highest[b]))


def _curves(axes: Axes, lines: Sequence[tuple[str, Any, Sequence[float], Tensor]], title: str) -> None:
    """Draw lines of (name, colour, positions, values); the legend on their right names at most 12."""
    for k, (name, colour, positions, values) in enumerate(lines):
        label = name if k % ceil(len(lines) / 12) == 0 else None
        size = 3 if len(positions) <= 30 else 1.5
        axes.plot(positions, values.numpy(), "o-", color=colour, linewidth=1.4, markersize=size, label=label)
    if not lines:
        return
    legend = axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        labelcolor=INK,
        title_fontsize=8,
        borderaxespad=0.2,
    )
    legend.get_title().set_color(INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    quiet(axes)


def _noise_positions(log_snr: Sequence[float]) -> list[float]:
    """Return the places of log-SNRs on their axis: an infinite one lies beyond the finite ones."""
    known = [value for value in log_snr if isfinite(value)] or [0.0]
    beyond = max(1.0, 0.15 * (max(known) - min(known)))
    return [min(max(value, min(known) - beyond), max(known) + beyond) for value in log_snr]


def _noise_axis(axes: Axes, log_snr: Mapping[Level, float], positions: Sequence[float]) -> None:
    """Label the axis of log-SNR, from much to little, with the noise steps above it."""
    axes.invert_xaxis()
    axes.set_xlabel("log-SNR", color=INK)
    known = [value for value in log_snr.values() if isfinite(value)]
    ticks = {
        position: log_snr_text(value)
        for position, value in zip(positions, log_snr.values(), strict=True)
        if not isfinite(value)
    }
    if known:
        low, high = min(known), max(known)
        round_numbers = MaxNLocator(6, steps=[1, 2, 4, 5, 10]).tick_values(low, high)
        ticks |= {tick: f"{tick:g}" for tick in round_numbers if low <= tick <= high}
    axes.set_xticks(list(ticks), list(ticks.values()))
    above: Any = axes.secondary_xaxis("top")
    above.set_xlabel("noise step t", color=INK)
    widest = max(len(f"{t}") for t in log_snr)
    chosen = _apart(positions, 0.02 + 0.03 * widest)
    above.set_xticks([positions[k] for k in chosen], [f"{list(log_snr)[k]}" for k in chosen])
    quiet(above)


def _ticks_at(axes: Axes, values: Sequence[int], gap: float) -> None:
    """Set ticks at measured values, no closer to each other than a share `gap` of the axis."""
    ticks = [values[k] for k in _apart(values, gap)]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])


def _apart(positions: Sequence[float], gap: float) -> list[int]:
    """Return the indices of monotonous positions that are no closer than a share `gap` of their range."""
    room = gap * abs(positions[-1] - positions[0])
    chosen = [0]
    for k, position in enumerate(positions):
        if k and abs(position - positions[chosen[-1]]) >= room:
            chosen.append(k)
    return chosen


def _dot(
    axes: Axes,
    height: float,
    share: float,
    interval: tuple[float, float],
    colour: str,
    sizes: tuple[float, float],
    label: str | None = None,
) -> None:
    """Draw a share in per cent as a dot over its interval.

    Args:
        height: position on the vertical axis.
        sizes: width of the interval's line and size of the dot, in points.
    """
    ends = [100 * bound for bound in interval]
    axes.plot(ends, [height] * 2, color=colour, linewidth=sizes[0], alpha=0.3, solid_capstyle="round")
    axes.plot(100 * share, height, "o", color=colour, markersize=sizes[1], label=label)


def _dots(
    rows: Sequence[tuple[str, float, tuple[float, float]]],
    heights: Sequence[int],
    distance: float,
    label: str,
    mark: float | None,
    grey: Collection[str] = (),
) -> Figure:
    """Draw rows of (name, share, interval) as dots, from top to bottom.

    Args:
        heights: positions of the rows on the vertical axis, ascending.
        distance: inches between the positions k and k + 1.
        label: label of the horizontal axis.
        mark: share of the dotted vertical line; None draws none.
        grey: names of the rows to draw in grey.
    """
    count = heights[-1] + 1
    figure = Figure(figsize=(TEXT_WIDTH, 0.9 + distance * count), layout="constrained")
    axes = figure.subplots()
    wide = distance > 0.3
    for height, (name, value, interval) in zip(heights, rows, strict=True):
        colour = BASELINE if name in grey else ACCENT
        _dot(axes, height, value, interval, colour, (5, 7 if wide else 5))
        axes.annotate(
            f"{100 * value:.1f}",
            (100 * interval[1], height),
            (9, 0),
            textcoords="offset points",
            va="center",
            size=10 if wide else 8,
            color=colour if name in grey else INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    if mark is not None:
        axes.axvline(100 * mark, color=BASELINE, linewidth=1, linestyle=(0, (1, 3)), zorder=0)
    names = [shortened(name, 44) for name, *_ in rows]
    axes.set_yticks(heights, names, parse_math=False, size=10 if wide else 8)
    axes.set_ylim(count - 0.4, -0.6)
    axes.margins(x=0.09)
    axes.set_xlabel(label, color=INK)
    left, right = axes.get_xlim()
    if right - left < 1:  # points; equal values get an axis of ten
        low = min(max((left + right) / 2 - 5, 0), 90)
        left, right = axes.set_xlim(low - 0.9, low + 10.9)
    # margins may exceed 0 .. 100 %, ticks may not
    ticks = [tick for tick in axes.get_xticks() if max(left, 0) <= tick <= min(right, 100)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    quiet(axes)
    return figure
