"""The report of `difflens propagate`."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from difflens.reports.html import Picture, Section, Table, render
from difflens.results.propagate import PropagateResult


def propagate_report(
    *,
    result: PropagateResult,
    data: str,
    place: str,
    protocol: str,
    figures: Sequence[tuple[str, Figure]],
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        data: the name of the sequences.
        place: the block and the noise step, in words.
        protocol: where labels come from, in a sentence.
        figures: name of a sequence and some of its frames with their masks.
        provenance: rows of the closing table.
    """
    columns = ("Sequence", "Frames", "Measured", "Objects", "J, %", "F, %", "J&F, %")
    rows: list[tuple[object, ...]] = [*result.rows()]
    caption = (
        "J is intersection over union, F the agreement of outlines, both as means over measured frames. The "
        "first frame is given, and never measured."
    )
    best = None if result.overall is None else len(rows) - 1
    table = Table(columns, rows, caption, best)
    pictures = tuple(
        Picture(figure, f"{name}: the mask of the first frame is given.", f"Masks of {name}")
        for name, figure in figures
    )
    sections = [Section("Masks by sequence", protocol, (table,)), Section("Frames", "", pictures)]
    lead = f"Sequences of {data}, by the features of {place}."
    return render("Propagated masks", lead, sections, provenance)
