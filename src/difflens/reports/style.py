"""Colours, sizes and letters that all figures of reports share."""

from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar

from difflens.run.text import one_line

ACCENT = "#2f5bd0"
BASELINE = "#6f7680"
INK = "#20242b"
LINE = "#e6e8ec"
KINDS = (ACCENT, "#d1495b", "#1f9e89", "#d98e04", "#7b5ea7")
"""Colours of up to five lines; the first is for the most important line."""

WIDTH = 9.5
"""Inches of the widest figure."""
TEXT_WIDTH = 7.3
"""Inches of a figure that is as wide as the text."""


def shortened(name: str, length: int = 24) -> str:
    """Return a name as one line of at most `length` characters."""
    line = one_line(name)
    return line if len(line) <= length else f"{line[: length - 1]}\u2026"


def quiet_bar(bar: Colorbar, label: str) -> None:
    """Name what a colour bar measures, and remove its frame and tick marks."""
    bar.set_label(label, size=8, color=INK)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]


def quiet(axes: Axes) -> None:
    """Remove the frame and the tick marks."""
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
