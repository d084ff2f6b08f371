"""A report as one HTML file that needs only a browser."""

import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from difflens.reports.png import write_png
from difflens.run.directory import CONFIG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSELECTED = "The same weights generated these images. None was selected."
"""Text of sections that show generated images."""

_REPORTS = ("report.html", "backbone.html")
"""The reports that a run may have, the first one first."""

BACKBONE_REPORT = "Report of the backbone"
"""The row of the closing table that leads to the run whose network is read."""

_CSS_DPI = 96
_DENSITY = 2  # figures have two pixels for each CSS pixel, for sharp screens

# numbers, intervals, differences, shares and times: "1,234", "86.1 to 88.2", "+0.5 ± 0.3", "12 %", "1.5 s"
_NUMERIC = re.compile(r"(?=.*\d)(?:[\d\s.,+\-\u2212\u2013±%()/e]|\bto\b)+s?")
_MISSING = ("", "-", "\u2013", "\u2014")

_OPTION = re.compile(r" (?=--[a-z])")

# spaces that must not end a line: "95 %", "+0.5 ± 0.3"
_UNBROKEN = re.compile(r" (?=[%±])|(?<=±) ")


def percent(share: float | None) -> str | None:
    """Return a share in [0, 1] in percent, with two digits; None, a dash in a table, stays None."""
    return None if share is None else f"{100 * share:.2f}"


def interval(bounds: Sequence[float]) -> str:
    """Return an interval of shares in [0, 1] in percent, with one digit: "86.1 to 88.2"."""
    return "{:.1f} to {:.1f}".format(*(100 * bound for bound in bounds))


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first column names the row.

    Attributes:
        columns: headings of the columns.
        rows: one cell a column; numbers are formatted, None is a dash, other values become text.
        caption: one or two sentences under the table.
        best: index of the row to emphasise; None emphasises no row.
    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    caption: str = ""
    best: int | None = None

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        assert not wrong, f"{len(self.columns)} columns, but a row has {len(wrong[0])} cells: {wrong[0]}"
        assert self.best is None or 0 <= self.best < len(self.rows), f"no row {self.best}"

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[_text(value) for value in row] for row in self.rows]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """True for each column that holds numbers, or numbers and gaps."""
        columns = zip(*self.cells, strict=True) if self.rows else [()] * len(self.columns)
        return tuple(_is_numeric([cell for cell in column if cell not in _MISSING]) for column in columns)


@dataclass(frozen=True)
class Picture:
    """An image with its caption.

    Attributes:
        image: a PIL image, or a matplotlib figure, which keeps its size in inches.
        caption: text under the image.
        alt: text that replaces the image for readers who cannot see it.
        scale: CSS pixels for each pixel of a PIL image, whose pixels stay sharp squares.
    """

    image: "Image.Image | Figure"
    caption: str
    alt: str
    scale: int = 1

    def png(self) -> tuple[bytes, int, int]:
        """Return the encoded image, and its width and height in CSS pixels."""
        buffer = BytesIO()
        if isinstance(self.image, Image.Image):
            self.image.save(buffer, "PNG", optimize=True)
            width, height = self.image.size
            return buffer.getvalue(), width * self.scale, height * self.scale
        write_png(self.image, buffer, _DENSITY * _CSS_DPI, transparent=True)
        width, height = Image.open(buffer).size
        return buffer.getvalue(), width // _DENSITY, height // _DENSITY


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and pictures.

    Attributes:
        title: the heading, and its entry in the list of contents.
        text: plain text; an empty line begins a new paragraph.
        parts: tables and pictures, in order.
        commands: command lines, each with a button that copies it.
        links: reports of other runs: title, and address relative to this report.
    """

    title: str
    text: str = ""
    parts: tuple[Table | Picture, ...] = ()
    commands: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


_COPY = """document.addEventListener("click", event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const code = button.previousElementSibling;
  getSelection().selectAllChildren(code);
  (navigator.clipboard ? navigator.clipboard.writeText(code.textContent) : Promise.reject())
    .catch(() => document.execCommand("copy"))
    .finally(() => { button.textContent = "Copied"; });
});"""
"""The script of the buttons that copy a command. Browsers run it by its digest, and no other script."""


@dataclass(frozen=True)
class Link:
    """A row of the closing table that leads to another report.

    Attributes:
        text: what is shown.
        address: the address, relative to this report.
    """

    text: str
    address: str


def reports_of(folder: Path, runs: Mapping[str, str | Path]) -> dict[str, Path]:
    """Return the reports of runs, relative to the folder of another report; runs without one are left out.

    Args:
        runs: by title, what an option names: the folder of a run or of the model in it, or any other word.
    """
    found = {}
    for title, named in runs.items():
        named = Path(str(named).removeprefix("random:"))
        homes = [home for home in (named, named.parent) if (home / CONFIG).is_file()]
        reports = [home / name for home in homes[:1] for name in _REPORTS if (home / name).is_file()]
        if reports:
            # as a browser resolves it: by words, not by links of the file system
            found[title] = Path(os.path.relpath(reports[0].absolute(), folder.absolute()))
    return found


def report_of(folder: Path, key: str, run: str | Path) -> dict[str, Link]:
    """Return the row of the closing table that leads to the report of a run; none if it has no report."""
    found = reports_of(folder, {key: run})
    return {title: Link(str(run), quote(os.fsencode(path.as_posix()))) for title, path in found.items()}


def runs_beneath(reports: Mapping[str, Path]) -> list[Section]:
    """Return the section that links to the reports of the runs that a run holds; none without runs.

    Args:
        reports: paths relative to this report's folder, by title.
    """
    links = tuple((title, quote(os.fsencode(path.as_posix()))) for title, path in reports.items())
    return [Section("Runs beneath", links=links)] if links else []


def render(title: str, lead: str, sections: Sequence[Section], provenance: Mapping[str, object]) -> str:
    """Return one self-contained HTML document. Its only script copies commands, and its only links to other
    files are those of `Section.links` and of `Link`.

    All texts are plain text; markup in them is escaped.

    Args:
        title: title of the document.
        lead: the subject of the report, in a sentence or two.
        sections: sections in order.
        provenance: rows of the closing table, which says how to repeat the run: command, seed, versions,
            hardware. Commands, whose key is "Command", can be copied; a `Link` leads to another report.
    """
    digest = b64encode(sha256(_COPY.encode()).digest()).decode()
    environment = templates()
    environment.filters["data_uri"] = lambda png: f"data:image/png;base64,{b64encode(png).decode()}"
    environment.filters["options"] = _OPTION.split
    environment.filters["prose"] = lambda text: _UNBROKEN.sub("\u00a0", text)
    environment.tests["table"] = lambda part: isinstance(part, Table)
    return environment.get_template("report.html.j2").render(
        title=title, lead=lead, sections=sections, provenance=provenance, script=_COPY, digest=digest
    )


def templates() -> Environment:
    """Return the templates of pages, which escape every text and know the test `link`."""
    environment = Environment(
        loader=PackageLoader("difflens", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["link"] = lambda value: isinstance(value, Link)
    return environment


def _text(value: object) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_numeric(cells: list[str]) -> bool:
    return bool(cells) and all(_NUMERIC.fullmatch(cell) for cell in cells)
