"""Labels that are carried along features whose positions are known, and scores of masks drawn by hand."""

import math

import pytest
import torch

from difflens.metrics import propagation
from difflens.metrics.propagation import boundary_f, carry, jaccard


def frame(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(seed))


def labels() -> torch.Tensor:
    """An object in the upper left corner, and the background."""
    inside = torch.zeros(6, 8)
    inside[:2, :3] = 1
    return torch.stack([1 - inside, inside])


def test_labels_follow_features_that_move() -> None:
    first = frame()
    moved = first.roll((1, 2), dims=(1, 2))
    found = carry(moved, [first], [labels()], neighbours=1, radius=0)
    torch.testing.assert_close(found, labels().roll((1, 2), dims=(1, 2)))
    near = carry(moved, [first], [labels()], neighbours=1, radius=2)
    torch.testing.assert_close(near[:, 1:, 2:], found[:, 1:, 2:])


def test_beyond_the_radius_nothing_is_taken() -> None:
    first = frame()
    moved = first.roll(4, dims=2)
    near = carry(moved, [first], [labels()], neighbours=1, radius=1)
    # the object's features lie in columns 4 to 6, whose near labels are background
    assert float(near[1, :, 5:].sum()) == 0
    assert float(carry(moved, [first], [labels()], neighbours=1, radius=4)[1, :2, 4:7].min()) == 1


def test_neighbours_are_weighted_by_the_softmax_of_their_cosines() -> None:
    """Two context frames of one cell with cosines 1 and 0.5."""
    target = torch.tensor([1.0, 0.0]).reshape(2, 1, 1)
    context = [torch.tensor([3.0, 0.0]), torch.tensor([0.5, math.sqrt(0.75)])]
    first, second = (each.reshape(2, 1, 1) for each in context)
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    found = carry(
        target,
        [first, second],
        [one.reshape(2, 1, 1), other.reshape(2, 1, 1)],
        neighbours=2,
        temperature=0.25,
    )
    assert float(found[0]) == pytest.approx(1 / (1 + math.exp(-2)))
    assert float(found.sum()) == pytest.approx(1)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = frame(1), [frame(2), frame(3)], [labels(), labels().flip(2)]
    whole = carry(*arguments, radius=3)
    monkeypatch.setattr("difflens.metrics.propagation._CHUNK", 200)
    torch.testing.assert_close(carry(*arguments, radius=3), whole)
    torch.testing.assert_close(whole.sum(0), torch.ones(6, 8))


def square(left: int, top: int, side: int = 20) -> torch.Tensor:
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_intersection_over_union() -> None:
    assert jaccard(square(10, 10), square(20, 10)) == pytest.approx(1 / 3)
    empty = torch.zeros(60, 80, dtype=torch.bool)
    assert (jaccard(empty, empty), jaccard(empty, square(10, 10))) == (1, 0)


def test_an_outline_is_of_pixels_that_differ_to_the_right_below_or_between() -> None:
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1, 1] = True
    assert propagation._outline(mask).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_outlines_agree_within_the_tolerance() -> None:
    """The diagonal is 100 pixels, so the tolerance of 0.008 is one pixel."""
    true = square(10, 10)
    assert boundary_f(true, true) == 1
    assert boundary_f(square(11, 10), true) == 1
    assert 0.3 < boundary_f(square(13, 10), true) < 0.7  # the upper and the lower side still agree
    assert boundary_f(square(40, 40, 10), true) == 0
    empty = torch.zeros(60, 80, dtype=torch.bool)
    assert (boundary_f(empty, empty), boundary_f(empty, true), boundary_f(true, empty)) == (1, 0, 0)
