"""Times of bfloat16 against float32, by a clock that the steps move."""

from types import SimpleNamespace

import pytest
import torch

from difflens.run import measuring
from difflens.run.measuring import bfloat16_speedup, images_to_measure


class Steps:
    """Steps that take so many seconds an image in each format, and remember how many images they took."""

    def __init__(self, float32: float, bfloat16: float):
        self.seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
        self.now = 0.0
        self.images: list[int] = []

    def __call__(self, dtype: torch.dtype, count: int) -> None:
        self.images.append(count)
        self.now += self.seconds[dtype] * count


def speedup_of(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: steps.now))
    return bfloat16_speedup(steps, 32)


def test_both_formats_take_turns_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(0.02, 0.01)
    assert speedup_of(steps, monkeypatch) == pytest.approx(2.0)
    assert steps.images == [1] * 4 + [32] * (2 + 2 * 3)  # a round takes 0.96 seconds


def test_one_image_shows_that_a_format_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(0.02, 0.2)
    assert speedup_of(steps, monkeypatch) == pytest.approx(0.1)
    assert set(steps.images) == {1}


@pytest.mark.parametrize(("side", "images"), [(32, 32), (64, 8), (512, 1)])
def test_larger_images_are_measured_in_smaller_numbers(side: int, images: int) -> None:
    assert images_to_measure(side) == images
