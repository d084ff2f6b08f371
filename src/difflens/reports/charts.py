"""Charts for reports: accuracies, shares and losses as dots, bars and lines.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

from collections.abc import Collection, Mapping, Sequence
from math import ceil, inf
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from difflens.reports.style import ACCENT, BASELINE, INK, KINDS, LINE, TEXT_WIDTH, WIDTH, quiet, shortened

_CLASSES = 40  # the most classes that are shown one by one


def accuracy_curves(
    accuracy: Tensor, blocks: Sequence[int], noise_steps: Sequence[int], best: tuple[int, int] | None
) -> Figure:
    """The numbers of `heat_maps.accuracy_map` as lines: over the blocks, and over the noise steps for the five best blocks.

    Of one noise step the second panel is left out, of one block the first.

    Args:
        accuracy: (T, B) shares in [0, 1]; NaN where nothing was measured.
        blocks: indices of the B columns.
        noise_steps: the t of the T rows.
        best: (block, noise step) to mark with a ring.
    """
    shape = (len(noise_steps), len(blocks))
    assert accuracy.shape == shape, f"{shape} noise steps and blocks, but accuracies {tuple(accuracy.shape)}"
    values = 100 * accuracy.detach().cpu().double()
    by_block, by_noise = len(blocks) > 1 or len(noise_steps) == 1, len(noise_steps) > 1
    panels = by_block + by_noise
    figure = Figure(figsize=(WIDTH if panels > 1 else TEXT_WIDTH, 3.7), layout="constrained")
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
            for block, colour in zip(ranked, KINDS, strict=False)
        ]
        _curves(drawn[-1], chosen, "best blocks" if len(ranked) > len(KINDS) else "block")
        drawn[-1].set_xlabel("noise step t", color=INK)
        _noise_axis(drawn[-1], noise_steps)
    if best is not None:
        value = float(values[noise_steps.index(best[1]), blocks.index(best[0])])
        for axes, place in zip(drawn, [best[0]] * by_block + [best[1]] * by_noise, strict=True):
            axes.plot(place, value, "o", markersize=10, fillstyle="none", color=INK, markeredgewidth=1.2)
    drawn[0].set_ylabel("top-1 accuracy, %", color=INK)
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
    """Parts of a whole as bars, from top to bottom; a negative one points left.

    Args:
        shares: by name.
        label: what they are shares of.
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
    figure = Figure(figsize=(TEXT_WIDTH, 2.9), layout="constrained")
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
    quiet(axes)
    return figure


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
    quiet(axes)


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


def _dot(
    axes: Axes,
    place: float,
    share: float,
    interval: tuple[float, float],
    colour: str,
    sizes: tuple[float, float],
    label: str | None = None,
) -> None:
    """A share at height `place`, in per cent, over its interval; the sizes are of the line and of the dot, in points."""
    ends = [100 * bound for bound in interval]
    axes.plot(ends, [place] * 2, color=colour, linewidth=sizes[0], alpha=0.3, solid_capstyle="round")
    axes.plot(100 * share, place, "o", color=colour, markersize=sizes[1], label=label)


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
    figure = Figure(figsize=(TEXT_WIDTH, 0.9 + height * count), layout="constrained")
    axes = figure.subplots()
    wide = height > 0.3
    for place, (name, value, interval) in zip(places, rows, strict=True):
        colour = BASELINE if name in grey else ACCENT
        _dot(axes, place, value, interval, colour, (5, 7 if wide else 5))
        axes.annotate(
            f"{100 * value:.1f}", (100 * interval[1], place), (9, 0), textcoords="offset points", va="center",
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
    quiet(axes)
    return figure
