"""Figures of matplotlib."""

from io import BytesIO

from matplotlib.figure import Figure


def draw(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()
