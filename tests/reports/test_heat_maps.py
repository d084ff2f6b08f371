"""Heat maps show the right numbers, and their texts have room."""

from math import nan

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from difflens.reports import charts, heat_maps, style
from tests.helpers.figures import (
    STEPS,
    accuracies,
    assert_room,
    boxes,
    draw,
    labels,
    laid_out,
    log_snr,
    parts,
)


def test_heat_map() -> None:
    accuracy = torch.tensor([[0.5, 0.912, nan], [0.4, 0.88, 0.9]])
    figure = heat_maps.accuracy_map(
        accuracy, (2, 7, 9), log_snr(5, 90), ("encoder", "encoder", "decoder"), (7, 5)
    )
    axes, bar = figure.axes
    picture = axes.get_images()[0]
    np.testing.assert_allclose(np.ma.filled(picture.get_array(), np.nan), 100 * accuracy, rtol=1e-6)
    cells = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()[0].isdigit()}
    assert cells == {(0, 0): "50.0", (1, 0): "91.2", (0, 1): "40.0", (1, 1): "88.0", (2, 1): "90.0"}
    assert [text.get_text() for text in axes.texts if text.get_text().isalpha()] == ["encoder", "decoder"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "7", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5 (7.0)", "90 (2.4)"]
    (outline,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert outline.get_bbox().bounds == (0.5, -0.5, 1, 1)
    assert any(isinstance(mesh, QuadMesh) for mesh in bar.collections)
    assert draw(figure)


def test_colours_of_a_heat_map_are_for_the_good_cells() -> None:
    accuracy = accuracies(8, 25)
    low, high = (
        heat_maps.accuracy_map(accuracy, range(25), log_snr(*STEPS[:8]), parts(25), None)
        .axes[0]
        .get_images()[0]
        .get_clim()
    )
    assert high == pytest.approx(100 * float(accuracy.max()))
    assert (accuracy < low / 100).double().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_heat_map_of_equal_accuracies(value: float) -> None:
    figure = heat_maps.accuracy_map(
        torch.full((2, 2), value), (1, 2), log_snr(0, 5), ("encoder", "decoder"), (1, 0)
    )
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert high - low == pytest.approx(1)
    assert draw(figure)


def test_nothing_measured() -> None:
    accuracy = torch.full((2, 2), nan)
    assert draw(heat_maps.accuracy_map(accuracy, (1, 2), log_snr(0, 5), ("encoder", "decoder"), None))
    assert draw(charts.accuracy_curves(accuracy, (1, 2), log_snr(0, 5), None))


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
        heat_maps.accuracy_map(
            accuracies(rows, columns), blocks, log_snr(*STEPS[:rows]), parts(columns), (1, 0)
        )
    )
    axes, bar = figure.axes
    cells = [text for text in axes.texts if text.get_text()[0].isdigit()]
    names = [text for text in axes.texts if text.get_text().isalpha()]
    assert len(cells) == (rows * columns if written else 0)
    assert figure.get_size_inches()[0] <= style.WIDTH
    assert_room(figure, cells, names, [*labels(axes.xaxis), *labels(axes.yaxis), axes.xaxis.label])
    assert_room(figure, [*labels(bar.xaxis), *labels(bar.yaxis), bar.xaxis.label, bar.yaxis.label])
    side = axes.get_window_extent().width / columns
    assert all(box.width < side for box in boxes(cells))


def test_narrow_parts_of_a_network_are_named_on_two_lines() -> None:
    roles = ["encoder"] * 30 + ["middle", "decoder"]
    figure = laid_out(heat_maps.accuracy_map(accuracies(3, 32), range(1, 33), log_snr(0, 1, 5), roles, None))
    names = [text for text in figure.axes[0].texts if text.get_text().isalpha()]
    assert [name.get_text() for name in names] == ["encoder", "middle", "decoder"]
    assert_room(figure, names)


def test_heat_map_of_other_sizes() -> None:
    with pytest.raises(AssertionError, match=r"\(1, 2\) noise steps and blocks"):
        heat_maps.accuracy_map(torch.zeros(2, 1), (1, 2), log_snr(0), ("encoder", "decoder"), None)
    with pytest.raises(AssertionError, match="2 blocks, but 1 roles"):
        heat_maps.accuracy_map(torch.zeros(1, 2), (1, 2), log_snr(0), ("encoder",), None)


def test_confusion_matrix_counts() -> None:
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = heat_maps.confusion_matrix(matrix, ("a $\\broken$", "b" * 99, "c\nd"), "which $ is which")
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "8",
        (1, 0): "2",
        (0, 2): "1",
        (2, 2): "3",
    }
    shares = np.asarray(axes.get_images()[0].get_array()) ** 2
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]], atol=1e-9)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a $\\broken$", "b" * 23 + "\u2026", "c d"]
    assert draw(figure)  # a dollar sign starts no formula


@pytest.mark.parametrize(
    ("count", "written", "labels"), [(10, True, 10), (30, True, 30), (31, False, 16), (1000, False, 25)]
)
def test_confusion_matrix_of_many_classes(count: int, written: bool, labels: int) -> None:
    figure = heat_maps.confusion_matrix(
        torch.eye(count, dtype=torch.long), [str(k) for k in range(count)], ""
    )
    axes = figure.axes[0]
    assert len(axes.texts) == (count if written else 0)
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == labels
    assert max(figure.get_size_inches()) <= 10


def test_confusion_matrix_of_other_classes() -> None:
    with pytest.raises(AssertionError, match="2 classes"):
        heat_maps.confusion_matrix(torch.eye(3), ("a", "b"), "")


def test_similarity_map_marks_mirrors_and_writes_numbers() -> None:
    values = torch.tensor([[1.0, 0.2, float("nan")], [0.2, 1.0, -0.1]])
    figure = heat_maps.similarity_map(
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
        heat_maps.similarity_map(values, ["1"], ["a"], ("", ""))
