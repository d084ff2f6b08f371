"""Heat maps for reports: a matrix as colours, with names beside it and numbers in its cells.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from math import ceil
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from difflens.processes.base import Level, bracketed
from difflens.reports.style import BASELINE, INK, LINE, WIDTH, quiet, quiet_bar, shortened

# the most rows and columns whose cells hold numbers
_ACCURACY_NUMBERS = (12, 26)
_SIMILARITY_NUMBERS = (12, 12)
_CONFUSION_NUMBERS = 30
_LABELS = 25  # the most labels on an axis of more than _CONFUSION_NUMBERS classes


def accuracy_map(
    accuracy: Tensor,
    blocks: Sequence[int],
    log_snr: Mapping[Level, float],
    roles: Sequence[str],
    best: tuple[int, Level] | None,
) -> Figure:
    """Draw the accuracy of every block at every noise step: one row a noise step, one column a block.

    The lowest fifth of the cells share one colour, so that differences among the good cells are visible.
    Cells hold per cent; beyond 12 x 26 cells there are colours only.

    Args:
        accuracy: (T, B) shares in [0, 1]; NaN where nothing was measured.
        blocks: indices of the B columns.
        log_snr: log-SNR of the T rows by noise step, from the least to the most noise.
        roles: the part of the network of each column ("encoder", "middle", "decoder").
        best: (block, noise step) of the cell to outline; None outlines nothing.
    """
    values = 100 * accuracy.detach().cpu().double()
    return place_map(values, blocks, log_snr, roles, best, "top-1 accuracy, %", "{:.1f}", _range(values))


def place_map(
    values: Tensor,
    blocks: Sequence[int],
    log_snr: Mapping[Level, float],
    roles: Sequence[str],
    best: tuple[int, Level] | None,
    label: str,
    form: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw a value of every block at every noise step: one row a noise step, one column a block.

    Args:
        values: (T, B); NaN is grey.
        blocks, log_snr, roles, best: as for `accuracy_map`.
        label: label of the colours.
        form: format of the numbers in the cells, as of `str.format`.
        limits: the values of the lowest and of the highest colour.
    """
    count, width = len(log_snr), len(blocks)
    shape = (count, width)
    assert values.shape == shape, f"{shape} noise steps and blocks, but values {tuple(values.shape)}"
    assert len(roles) == width, f"{width} blocks, but {len(roles)} roles"
    cell_width = min(0.62, (WIDTH - 2.2) / width)
    cell_height = min(0.36, 8 / count)
    tall = cell_height * count > 1.5
    low, _ = limits
    axes, picture = _heat_map(
        values,
        [bracketed(t, value) for t, value in log_snr.items()],
        list(map(str, blocks)),
        ("noise step t (log-SNR)", "block"),
        size=(max(3.2, cell_width * width + 2.2), cell_height * count + (1.0 if tall else 1.6)),
        limits=limits,
        most_labels=(30, 40),
        letters=(9, 8 if width > 15 else 9),
        aspect="auto",
    )
    if not tall:
        axes.set_ylabel("noise step t\n(log-SNR)", color=INK)
    _cell_borders(axes, count, width)
    if count <= _ACCURACY_NUMBERS[0] and width <= _ACCURACY_NUMBERS[1]:
        _write(picture, _numbers(values, form), 9 if cell_width > 0.45 else 7)
    _role_brackets(axes, roles, cell_width)
    if best is not None:
        outline = _frame(axes, list(log_snr).index(best[1]), blocks.index(best[0]), 0.5)
        outline.set(edgecolor=INK, linewidth=2, clip_on=False, zorder=3)
        outline.set_path_effects([withStroke(linewidth=4, foreground="white")])
    extend = "min" if values.lt(low).any() else "neither"
    right, bottom = {"location": "right", "aspect": 25}, {"location": "bottom", "shrink": 0.8, "aspect": 40}
    placing: dict[str, Any] = right if tall else bottom
    bar = _colour_bar(picture, label, extend=extend, **placing)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    return _figure(axes)


def similarity_map(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str],
    roles: tuple[Sequence[str], Sequence[str]] = ((), ()),
    marks: Sequence[tuple[int, int]] = (),
    measure: str = "CKA",
) -> Figure:
    """Draw the similarity of every pair of a row and a column, on one scale from 0 to 1.

    Up to 12 x 12 cells hold numbers.

    Args:
        values: (R, C) similarities up to 1; negative ones share the colour of 0, NaN is grey.
        rows, columns: R and C names.
        titles: titles of the rows and of the columns.
        roles: the part of the network of each row and column ("encoder", "middle", "decoder"), or empty.
        marks: (row, column) of cells to frame.
        measure: name of the similarity.
    """
    height, width = len(rows), len(columns)
    values = values.detach().cpu().double()
    cell = min(0.5, 6.2 / max(height, width))
    letters = 8 if cell < 0.35 else 9
    axes, picture = _heat_map(
        values.clamp(min=0),
        rows,
        columns,
        titles,
        limits=(0, 1),
        letters=(letters, letters),
        size=(max(3.0, cell * width + 1.9), max(2.2, cell * height + 1.2)),
    )
    if max(map(len, columns)) * 0.07 > cell:  # inches of a letter
        _slant(axes)
    for line, parts in ((axes.axhline, roles[0]), (axes.axvline, roles[1])):
        for k, (role, following) in enumerate(pairwise(parts)):
            if role != following:
                line(k + 0.5, color="white", linewidth=1.2)
    _role_brackets(axes, roles[1], cell)
    if height <= _SIMILARITY_NUMBERS[0] and width <= _SIMILARITY_NUMBERS[1]:
        _write(picture, _numbers(values, "{:.2f}"), 8)
    for row, column in marks:
        _frame(axes, row, column, 0.42).set(edgecolor="#d1495b", linewidth=min(1.6, 5 * cell))
    _colour_bar(picture, measure, shrink=0.7, aspect=25)
    return _figure(axes)


def confusion_matrix(matrix: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix.

    Colours are shares of a true class, on a square-root scale, so that rare confusions are visible. Cells
    hold counts above 0; beyond 30 classes there are colours only, and some of the labels.

    Args:
        matrix: (K, K) counts; rows are true classes, columns are predictions.
        classes: K names.
        title: title above the matrix; may be empty.
    """
    count = len(classes)
    assert matrix.shape == (count, count), f"{count} classes, but the matrix is {tuple(matrix.shape)}"
    matrix = matrix.cpu()
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    small = count <= _CONFUSION_NUMBERS
    side = min(WIDTH, max(4.0, 1.8 + (0.5 if small else 0.25) * count))
    labels = count if small else _LABELS
    axes, picture = _heat_map(
        shares.sqrt(),
        classes,
        classes,
        ("true", "predicted"),
        size=(side, side),
        limits=(0, 1),
        colours="Blues",
        most_labels=(labels, labels),
        letters=(10, 10),
    )
    _slant(axes)
    axes.set_title(title, color=INK, parse_math=False)
    if small:
        counts = {(i, k): f"{int(matrix[i, k])}" for i, k in matrix.nonzero().tolist()}
        _write(picture, counts, 9 if count <= 15 else 6)
    bar = _colour_bar(picture, "of the true class", shrink=0.6, aspect=30)
    marks = (0, 0.01, 0.05, 0.2, 0.5, 1)
    bar.set_ticks([mark**0.5 for mark in marks], labels=[f"{100 * mark:g} %" for mark in marks])
    return _figure(axes)


def confusion_caption(classes: int) -> str:
    """Return what `confusion_matrix` shows of so many classes."""
    cells = "Numbers of test images" if classes <= _CONFUSION_NUMBERS else "Shares of each true class"
    return f"{cells}; rows are true classes, columns are predictions."


def _heat_map(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str],
    *,
    size: tuple[float, float],
    limits: tuple[float, float],
    colours: str = "viridis",
    most_labels: tuple[int, int] = (40, 40),
    letters: tuple[int, int],
    aspect: Literal["equal", "auto"] = "equal",
) -> tuple[Axes, AxesImage]:
    """Draw a matrix (R, C) as colours, with names of its rows and columns; NaN is grey.

    Args:
        titles: titles of the rows and of the columns.
        size: width and height of the figure, in inches.
        limits: the values of the lowest and of the highest colour.
        most_labels: the most labels of rows and of columns; with more names, every k-th has a label.
        letters: sizes of the labels of rows and of columns, in points.
    """
    shape = (len(rows), len(columns))
    assert values.shape == shape, f"{shape[0]} x {shape[1]} names, but values {tuple(values.shape)}"
    axes = Figure(figsize=size, layout="constrained").subplots()
    cmap = matplotlib.colormaps[colours].with_extremes(bad=LINE)
    picture = axes.imshow(values.numpy(), cmap=cmap, vmin=limits[0], vmax=limits[1], aspect=aspect)
    sides = zip((axes.set_yticks, axes.set_xticks), (rows, columns), most_labels, letters, strict=True)
    for set_ticks, names, most, points in sides:
        ticks = range(0, len(names), ceil(len(names) / most))
        set_ticks(ticks, [shortened(names[k]) for k in ticks], size=points, parse_math=False)
    axes.set_ylabel(shortened(titles[0], 44), color=INK, parse_math=False)
    axes.set_xlabel(shortened(titles[1], 44), color=INK, parse_math=False)
    quiet(axes)
    return axes, picture


def _slant(axes: Axes) -> None:
    """Turn the labels of the columns by 45 degrees."""
    for label in axes.get_xticklabels():
        label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _range(values: Tensor) -> tuple[float, float]:
    """Return the limits of the colours: the 20th percentile and the maximum, at least one point apart."""
    measured = values[~values.isnan()]
    if not len(measured):
        return 0.0, 100.0
    low, high = float(measured.quantile(0.2)), float(measured.max())
    return min(low, high - 1), high


def _numbers(values: Tensor, form: str) -> dict[tuple[int, int], str]:
    """Return the values that are not NaN as texts, by (row, column)."""
    return {(i, k): form.format(float(values[i, k])) for i, k in (~values.isnan()).nonzero().tolist()}


def _write(picture: AxesImage, texts: Mapping[tuple[int, int], str], points: int) -> None:
    """Write texts into cells (row, column), white where the cell is dark."""
    values = picture.get_array()
    assert values is not None
    shades = picture.to_rgba(values)
    for (row, column), text in texts.items():
        red, green, blue, _ = shades[row, column]
        colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
        picture.axes.text(column, row, text, ha="center", va="center", size=points, color=colour)


def _frame(axes: Axes, row: int, column: int, half: float) -> Rectangle:
    frame = Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False)
    axes.add_patch(frame)
    return frame


def _colour_bar(picture: AxesImage, label: str, **placing: Any) -> Colorbar:
    bar = _figure(picture.axes).colorbar(picture, ax=picture.axes, pad=0.02, **placing)
    quiet_bar(bar, label)
    return bar


def _cell_borders(axes: Axes, rows: int, columns: int) -> None:
    axes.set_xticks([k + 0.5 for k in range(columns - 1)], minor=True)
    axes.set_yticks([k + 0.5 for k in range(rows - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _role_brackets(axes: Axes, roles: Sequence[str], cell_width: float) -> None:
    """Write the names of the network's parts above their columns, with a line under each."""
    columns = axes.get_xaxis_transform()  # horizontally columns, vertically shares of the axes' height
    above = columns + ScaledTranslation(0, 4 / 72, _figure(axes).dpi_scale_trans)
    line: dict[str, Any] = {"color": BASELINE, "linewidth": 1.2, "clip_on": False, "solid_capstyle": "butt"}
    text: dict[str, Any] = {"ha": "center", "size": 8, "color": BASELINE, "parse_math": False}
    gap = 0.025 / cell_width
    left = -0.5
    taken = -1.0  # right end of the last name on the lower line
    for role, run in groupby(roles):
        right = left + len(list(run))
        middle, half = (left + right) / 2, 0.036 * len(role) / cell_width  # 8 point letters, in columns
        raised = middle - half < taken
        taken = taken if raised else middle + half
        axes.plot([left + gap, right - gap], [1, 1], transform=above, **line)
        offset = (0, 19 if raised else 8)
        axes.annotate(role, (middle, 1), offset, xycoords=columns, textcoords="offset points", **text)
        left = right
