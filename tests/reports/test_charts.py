"""Charts: their numbers, read back from the figures, and whether their texts have room."""

from collections.abc import Sequence
from itertools import combinations
from math import nan

import numpy as np
import pytest
import torch
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor

from difflens.reports import charts
from tests.helpers.figures import draw


def laid_out(figure: Figure) -> Figure:
    """The figure after drawing, when its texts have their places."""
    FigureCanvasAgg(figure).draw()
    return figure


def boxes(texts: Sequence[Text]) -> list[Bbox]:
    """Where texts that are not empty are drawn, in pixels."""
    return [text.get_window_extent() for text in texts if text.get_text()]


def labels(axis: Axis) -> list[Text]:
    """The tick labels that are drawn: locators put some outside the axis."""
    low, high = sorted(axis.get_view_interval())
    return [
        label
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        if low <= place <= high
    ]


def assert_room(figure: Figure, *groups: Sequence[Text]) -> None:
    """No text of a group touches another of it, and none leaves the figure."""
    for group in groups:
        found = boxes(group)
        touching = [pair for pair in combinations(found, 2) if Bbox.intersection(*pair) is not None]
        assert not touching
        for box in found:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1


def accuracies(rows: int, columns: int) -> Tensor:
    """Like those of a real sweep: 55 to 93 %, poor at the first blocks and at much noise."""
    block = torch.linspace(0, 1, columns)
    noise = torch.linspace(0, 1, rows)[:, None]
    return 0.93 - 0.3 * torch.exp(-8 * block) - 0.08 * noise**3


def parts(columns: int) -> list[str]:
    half = (columns - 1) // 2
    return ["encoder"] * half + ["middle"] + ["decoder"] * (columns - half - 1)


STEPS = (0, 1, 5, 10, 20, 50, 100, 150, 300, 500, 700, 900)


def test_heat_map() -> None:
    accuracy = torch.tensor([[0.5, 0.912, nan], [0.4, 0.88, 0.9]])
    figure = charts.heat_map(accuracy, (2, 7, 9), (5, 90), ("encoder", "encoder", "decoder"), (7, 5))
    axes, bar = figure.axes
    picture = axes.get_images()[0]
    np.testing.assert_allclose(np.ma.filled(picture.get_array(), np.nan), 100 * accuracy, rtol=1e-6)
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()[0].isdigit()}
    assert cells == {(0, 0): "50.0", (1, 0): "91.2", (0, 1): "40.0", (1, 1): "88.0", (2, 1): "90.0"}
    assert [text.get_text() for text in axes.texts if text.get_text().isalpha()] == ["encoder", "decoder"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "7", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5", "90"]
    (outline,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert outline.get_bbox().bounds == (0.5, -0.5, 1, 1)
    assert any(isinstance(mesh, QuadMesh) for mesh in bar.collections)
    assert draw(figure)


def test_colours_of_a_heat_map_are_for_the_good_cells() -> None:
    accuracy = accuracies(8, 25)
    low, high = (
        charts.heat_map(accuracy, range(25), STEPS[:8], parts(25), None).axes[0].get_images()[0].get_clim()
    )
    assert high == pytest.approx(100 * float(accuracy.max()))
    assert (accuracy < low / 100).double().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_heat_map_of_equal_accuracies(value: float) -> None:
    figure = charts.heat_map(torch.full((2, 2), value), (1, 2), (0, 5), ("encoder", "decoder"), (1, 0))
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert high - low == pytest.approx(1)
    assert draw(figure)


def test_nothing_measured() -> None:
    accuracy = torch.full((2, 2), nan)
    assert draw(charts.heat_map(accuracy, (1, 2), (0, 5), ("encoder", "decoder"), None))
    assert draw(charts.accuracy_curves(accuracy, (1, 2), (0, 5), None))


@pytest.mark.parametrize(
    ("columns", "rows", "written"),
    [
        (25, 8, True),
        (26, 12, True),
        (37, 10, False),
        (5, 1, True),
        (1, 8, True),
        (1, 1, True),
        (3, 2, True),
        (90, 3, False),
    ],
)
def test_sizes_of_heat_maps(columns: int, rows: int, written: bool) -> None:
    blocks = range(1, columns + 1)
    figure = laid_out(
        charts.heat_map(accuracies(rows, columns), blocks, STEPS[:rows], parts(columns), (1, 0))
    )
    axes, bar = figure.axes
    cells = [text for text in axes.texts if text.get_text()[0].isdigit()]
    names = [text for text in axes.texts if text.get_text().isalpha()]
    assert len(cells) == (rows * columns if written else 0)
    assert figure.get_size_inches()[0] <= charts.WIDTH
    assert_room(figure, cells, names, [*labels(axes.xaxis), *labels(axes.yaxis), axes.xaxis.label])
    assert_room(figure, [*labels(bar.xaxis), *labels(bar.yaxis), bar.xaxis.label, bar.yaxis.label])
    side = axes.get_window_extent().width / columns
    assert all(box.width < side for box in boxes(cells))


def test_narrow_parts_of_a_network_are_named_on_two_lines() -> None:
    roles = ["encoder"] * 30 + ["middle", "decoder"]
    figure = laid_out(charts.heat_map(accuracies(3, 32), range(1, 33), (0, 1, 5), roles, None))
    names = [text for text in figure.axes[0].texts if text.get_text().isalpha()]
    assert [name.get_text() for name in names] == ["encoder", "middle", "decoder"]
    assert_room(figure, names)


def test_heat_map_of_other_sizes() -> None:
    with pytest.raises(AssertionError, match=r"\(1, 2\) noise steps and blocks"):
        charts.heat_map(torch.zeros(2, 1), (1, 2), (0,), ("encoder", "decoder"), None)
    with pytest.raises(AssertionError, match="2 blocks, but 1 roles"):
        charts.heat_map(torch.zeros(1, 2), (1, 2), (0,), ("encoder",), None)


def test_accuracy_curves() -> None:
    accuracy = torch.tensor([[0.5, 0.6, 0.7, nan, 0.8, 0.75, 0.2], [0.4, 0.5, 0.9, nan, 0.7, 0.78, 0.1]])
    blocks = (1, 3, 4, 6, 8, 9, 12)
    figure = charts.accuracy_curves(accuracy, blocks, (0, 50), (4, 50))
    by_block, by_noise = figure.axes
    lines = {line.get_label(): line for line in by_block.lines}
    for row, t in enumerate(("0", "50")):
        np.testing.assert_array_equal(lines[t].get_xdata(), blocks)
        np.testing.assert_allclose(lines[t].get_ydata(), 100 * accuracy[row], rtol=1e-6)
    texts = [text.get_text() for text in by_noise.get_legend().get_texts()]
    assert texts == ["4", "8", "9", "3", "1"]  # the best first, of those that were measured
    lines = {line.get_label(): line for line in by_noise.lines}
    np.testing.assert_allclose(lines["8"].get_ydata(), [80, 70], rtol=1e-6)
    for axes, place in ((by_block, 4), (by_noise, 50)):
        (ring,) = [line for line in axes.lines if line.get_fillstyle() == "none"]
        assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([place], [pytest.approx(90)])
    assert draw(figure)


@pytest.mark.parametrize(
    ("columns", "rows", "panels"),
    [(25, 8, 2), (37, 10, 2), (60, 12, 2), (5, 1, 1), (1, 8, 1), (1, 1, 1), (3, 2, 2)],
)
def test_sizes_of_curves(columns: int, rows: int, panels: int) -> None:
    blocks = range(1, columns + 1)
    figure = laid_out(charts.accuracy_curves(accuracies(rows, columns), blocks, STEPS[:rows], (1, 0)))
    assert len(figure.axes) == panels
    for axes in figure.axes:
        ticks, legend = labels(axes.xaxis), axes.get_legend()
        assert_room(figure, ticks, labels(axes.yaxis), [*legend.get_texts(), legend.get_title()])
        assert len(ticks) >= min(5, columns if axes.get_xlabel() == "block" else rows)


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ((0, 1, 5, 10, 50, 300), "symlog"),
        ((1, 5, 10, 50, 300), "symlog"),
        ((0, 40, 80, 120, 160), "linear"),
        ((0, 900), "linear"),
    ],
)
def test_noise_steps_that_spread(steps: tuple[int, ...], scale: str) -> None:
    figure = charts.accuracy_curves(accuracies(len(steps), 3), (1, 2, 3), steps, None)
    axes = figure.axes[1]
    assert axes.get_xscale() == scale
    assert set(axes.get_xticks()) <= set(steps)


def test_loss_curve() -> None:
    logs = [[{"epoch": e, "loss": 1 / e + run, "learning_rate": 0.1} for e in (1, 2, 3)] for run in (0, 1)]
    figure = charts.loss_curve([[*logs[0], {"head": "linear"}], logs[1]])
    first, second = figure.axes[0].lines
    np.testing.assert_allclose(first.get_ydata(), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(second.get_ydata(), [2, 3 / 2, 4 / 3])
    assert list(first.get_xdata()) == [1, 2, 3]
    assert first.get_linewidth() < charts.loss_curve(logs[:1]).axes[0].lines[0].get_linewidth()
    assert draw(figure)


def test_loss_of_one_epoch_is_a_dot() -> None:
    figure = charts.loss_curve([[{"epoch": 1, "loss": 0.5}]])
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert draw(figure)


def test_per_class_bars() -> None:
    accuracy = {"good $": 0.9, "none": None, "bad": 0.5, "fair": 0.7}
    figure = charts.per_class_bars(accuracy, {"bad": (0.4, 0.6), "fair": (0.6, 0.8), "good $": (0.8, 0.95)})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "fair", "good $"]
    assert [text.get_text() for text in axes.texts] == ["50.0", "70.0", "90.0"]
    (mean,) = [line for line in axes.lines if line.get_linewidth() == 1]
    assert list(mean.get_xdata()) == pytest.approx([70, 70])
    assert axes.get_xlabel() == "accuracy, %"
    assert draw(figure)
    assert draw(charts.per_class_bars(accuracy, None))


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (40, 40), (41, 40), (1000, 40)])
def test_per_class_bars_of_many_classes(count: int, shown: int) -> None:
    accuracy = {f"class {k}": k / count for k in reversed(range(count))}
    figure = laid_out(charts.per_class_bars(accuracy, None))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == shown
    assert (names[0], names[-1]) == ("class 0", f"class {count - 1}")
    left_out = [text.get_text() for text in axes.texts if "more" in text.get_text()]
    assert left_out == ([f"{count - 40} more between these"] if count > 40 else [])
    assert max(figure.get_size_inches()) <= 10
    assert_room(figure, labels(axes.yaxis), labels(axes.xaxis), axes.texts)


def test_worst_and_best() -> None:
    assert charts.worst_and_best({"a": 0.5, "b": None, "c": 0.2}) == (["c", "a"], [])
    worst, best = charts.worst_and_best({str(k): k / 50 for k in range(50)})
    assert worst == [str(k) for k in range(20)]
    assert best == [str(k) for k in range(30, 50)]


def test_confusion_matrix_counts() -> None:
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = charts.confusion_matrix(matrix, ("a $\\broken$", "b" * 99, "c\nd"), "which $ is which")
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"
    }  # fmt: skip
    shares = np.asarray(axes.get_images()[0].get_array()) ** 2
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]], atol=1e-9)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a $\\broken$", "b" * 23 + "\u2026", "c d"]
    assert draw(figure)  # a dollar sign starts no formula


@pytest.mark.parametrize(
    ("count", "written", "labels"), [(10, True, 10), (30, True, 30), (31, False, 16), (1000, False, 25)]
)
def test_confusion_matrix_of_many_classes(count: int, written: bool, labels: int) -> None:
    figure = charts.confusion_matrix(torch.eye(count, dtype=torch.long), [str(k) for k in range(count)], "")
    axes = figure.axes[0]
    assert len(axes.texts) == (count if written else 0)
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == labels
    assert max(figure.get_size_inches()) <= 10


def test_confusion_matrix_of_other_classes() -> None:
    with pytest.raises(AssertionError, match="2 classes"):
        charts.confusion_matrix(torch.eye(3), ("a", "b"), "")


def test_accuracy_bars() -> None:
    figure = charts.accuracy_bars(
        ["pixels", "linear $x", "best"],
        [0.845, 0.903, 1.0],
        [(0.83, 0.86), (0.89, 0.915), (0.998, 1.0)],
        ["pixels"],
    )
    (axes,) = figure.axes
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    assert [dots[row].get_xdata()[0] for row in range(3)] == pytest.approx([84.5, 90.3, 100])
    colours = [to_hex(dots[row].get_color()) for row in range(3)]
    assert colours == [charts.BASELINE, charts.ACCENT, charts.ACCENT]
    intervals = [line.get_xdata() for line in axes.lines if line.get_marker() == "None" and line.get_alpha()]
    np.testing.assert_allclose(intervals, [[83, 86], [89, 91.5], [99.8, 100]])
    assert [text.get_text() for text in axes.texts] == ["84.5", "90.3", "100.0"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert max(axes.get_xticks()) <= 100
    left, right = axes.get_xlim()
    assert right - left < 1.2 * (100 - 83)
    assert draw(figure)


def test_accuracy_bars_without_baseline() -> None:
    figure = charts.accuracy_bars(["one"], [0.0], [(0.0, 0.0)], [])
    assert len(figure.axes[0].lines) == 2
    assert draw(figure)


def test_similarity_map_marks_mirrors_and_writes_numbers() -> None:
    values = torch.tensor([[1.0, 0.2, float("nan")], [0.2, 1.0, -0.1]])
    figure = charts.similarity_map(
        values,
        ["1", "2"],
        ["a", "b", "$c$"],
        ("block", "other"),
        ((), ("encoder", "encoder", "decoder")),
        [(1, 0)],
    )
    axes = figure.axes[0]
    numbers = {
        tuple(map(int, text.get_position())): text.get_text() for text in axes.texts if "." in text.get_text()
    }
    assert numbers == {(0, 0): "1.00", (1, 0): "0.20", (0, 1): "0.20", (1, 1): "1.00", (2, 1): "-0.10"}
    (frame,) = axes.patches
    assert (frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2) == pytest.approx(
        (0, 1)
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "$c$"]
    assert axes.images[0].get_clim() == (0, 1)
    with pytest.raises(AssertionError, match="names, but values"):
        charts.similarity_map(values, ["1"], ["a"], ("", ""))


def test_protocol_dots() -> None:
    scores = {
        "linear": [(0.9, (0.88, 0.92)), (0.5, (0.4, 0.6))],
        "k-NN": [(0.8, (0.7, 0.85)), (0.3, (0.2, 0.4))],
    }
    axes = charts.protocol_dots(["ours", "theirs"], scores).axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([90, 50, 80, 30])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["linear", "k-NN"]


def test_share_bars() -> None:
    axes = charts.share_bars({"block 1": 0.75, "block 2": 0.3, "block 3": -0.05}, "share").axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([75, 30, -5])
    assert [text.get_text() for text in axes.texts] == ["75.0", "30.0", "-5.0"]
