"""Figures drawn and read back: whether their texts have room."""

from collections.abc import Sequence
from io import BytesIO
from itertools import combinations

import torch
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor

from difflens.processes.schedulers import process_of

STEPS = (0, 1, 5, 10, 20, 50, 100, 150, 300, 500, 700, 900)


def log_snr(*steps: int | float) -> dict[int | float, float]:
    """Steps of DDPM's schedule with their log-SNR, as figures take them."""
    return process_of().by_noise(steps)


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


def draw(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()
