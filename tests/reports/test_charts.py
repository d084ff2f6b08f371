"""Charts show the right numbers, and their texts have room."""

from math import inf, nan

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from difflens.reports import charts, style
from tests.helpers.figures import STEPS, accuracies, assert_room, draw, labels, laid_out, log_snr


def test_accuracy_curves() -> None:
    accuracy = torch.tensor([[0.5, 0.6, 0.7, nan, 0.8, 0.75, 0.2], [0.4, 0.5, 0.9, nan, 0.7, 0.78, 0.1]])
    blocks = (1, 3, 4, 6, 8, 9, 12)
    figure = charts.accuracy_curves(accuracy, blocks, log_snr(0, 50), (4, 50))
    by_block, by_noise = figure.axes
    lines = {line.get_label(): line for line in by_block.lines}
    for row, t in enumerate(("0 (9.2)", "50 (3.5)")):
        np.testing.assert_array_equal(lines[t].get_xdata(), blocks)
        np.testing.assert_allclose(lines[t].get_ydata(), 100 * accuracy[row], rtol=1e-6)
    texts = [text.get_text() for text in by_noise.get_legend().get_texts()]
    assert texts == ["4", "8", "9", "3", "1"]  # the best first, of those that were measured
    lines = {line.get_label(): line for line in by_noise.lines}
    np.testing.assert_allclose(lines["8"].get_ydata(), [80, 70], rtol=1e-6)
    np.testing.assert_allclose(lines["8"].get_xdata(), list(log_snr(0, 50).values()))
    for axes, place in ((by_block, 4), (by_noise, log_snr(50)[50])):
        (ring,) = [line for line in axes.lines if line.get_fillstyle() == "none"]
        assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([place], [pytest.approx(90)])
    assert draw(figure)


@pytest.mark.parametrize(
    ("columns", "rows", "panels"),
    [(25, 8, 2), (37, 10, 2), (60, 12, 2), (5, 1, 1), (1, 8, 1), (1, 1, 1), (3, 2, 2)],
)
def test_sizes_of_curves(columns: int, rows: int, panels: int) -> None:
    blocks = range(1, columns + 1)
    figure = laid_out(
        charts.accuracy_curves(accuracies(rows, columns), blocks, log_snr(*STEPS[:rows]), (1, 0))
    )
    assert len(figure.axes) == panels
    for axes in figure.axes:
        ticks, legend = labels(axes.xaxis), axes.get_legend()
        assert_room(figure, ticks, labels(axes.yaxis), [*legend.get_texts(), legend.get_title()])
        assert len(ticks) >= (min(5, columns) if axes.get_xlabel() == "block" else 2)
        for above in axes.child_axes:
            assert_room(figure, labels(above.xaxis), [above.xaxis.label])


def test_noise_grows_to_the_right_whichever_way_time_runs() -> None:
    towards_image = {1.0: inf, 0.9: 4.39, 0.5: 0.0, 0.1: -4.39, 0.0: -inf}
    figure = laid_out(charts.accuracy_curves(accuracies(5, 3), (1, 2, 3), towards_image, None))
    axes = figure.axes[1]
    left, right = axes.get_xlim()
    assert left > right
    places = axes.lines[0].get_xdata()
    np.testing.assert_allclose(places[1:4], (4.39, 0, -4.39))
    assert left > places[0] > 5
    assert right < places[4] < -5
    texts = [label.get_text() for label in labels(axes.xaxis)]
    assert {"\u221e", "0", "-\u221e"} < set(texts)
    (above,) = axes.child_axes
    assert [label.get_text() for label in labels(above.xaxis)] == ["1.0", "0.9", "0.5", "0.1", "0.0"]
    assert_room(figure, labels(axes.xaxis), labels(above.xaxis))


def test_steps_that_are_close_share_a_tick() -> None:
    figure = charts.accuracy_curves(accuracies(12, 3), (1, 2, 3), log_snr(*STEPS), None)
    (above,) = figure.axes[1].child_axes
    texts = [label.get_text() for label in above.get_xticklabels()]
    assert texts[0] == "0"
    assert 4 < len(texts) < 12


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
    nothing = charts.per_class_bars({"one": 0.0, "two": 0.0}, None)
    assert nothing.axes[0].get_xlim() == pytest.approx((-0.9, 10.9))


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
    assert colours == [style.BASELINE, style.ACCENT, style.ACCENT]
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
