"""Figures of reports as PNG images."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN = 0.02  # inches


def write_png(figure: "Figure", target: Path | BytesIO, dpi: int = 160, transparent: bool = False) -> None:
    """Write a figure, trimmed to what it shows.

    It is laid out and measured without being drawn: matplotlib, asked to do all at once, draws it twice.

    Args:
        dpi: pixels an inch.
        transparent: leave out the white ground.
    """
    from difflens.reports.fonts import with_letters

    figure.set_dpi(dpi)
    with_letters(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a note has told so
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine(None)
        shown = figure.get_tightbbox().padded(_MARGIN)
        figure.savefig(
            target,
            format="png",
            dpi=dpi,
            transparent=transparent,
            bbox_inches=shown,
            metadata={"Software": None},
        )
