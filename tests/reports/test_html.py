"""The HTML document, read by a parser and by a browser."""

import re
import shlex
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from difflens.reports.html import Picture, Section, Table, render, report_of, reports_of, runs_beneath
from tests.helpers.html import HOSTILE, Document, linked

GREEN = (12, 140, 90)


def drawing() -> Figure:
    figure = Figure(figsize=(4, 2), layout="constrained")
    figure.subplots().plot([0, 1], [0, 1])
    return figure


@pytest.fixture(scope="module")
def html() -> str:
    table = Table(
        ("Head", "Top-1, %", "Parameters", "Note"),
        [("linear", "84.50", 1210, "95 % sure"), ("attention", None, 2_400_000, HOSTILE)],
        "Two heads.",
        best=1,
    )
    sections = [
        Section("Results", "First paragraph.\n\nSecond, with +0.5 ± 0.3 and 95 %.", (table,)),
        Section(
            "Pictures",
            parts=(
                Picture(Image.new("RGB", (40, 30), GREEN), "A colour.", "Green", scale=3),
                Picture(drawing(), "", HOSTILE),
            ),
        ),
        Section(HOSTILE),
    ]
    provenance = {"Seed": 12345, "Command": "difflens demo"}
    return render("What it knows", "A lead.", sections, provenance)


@pytest.fixture(scope="module")
def document(html: str) -> Document:
    return Document(html)


def test_document(html: str, document: Document) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert document.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in document.all("meta"))
    assert [len(document.all(tag)) for tag in ("title", "h1", "nav", "main")] == [1, 1, 1, 1]
    assert "prefers-color-scheme: dark" in html


def test_loads_nothing(html: str, document: Document) -> None:
    links = document.values("src") + document.values("href")
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not document.values("srcset")
    assert len(document.all("script")) == 1  # it copies commands; another one would not be run
    digest = b64encode(sha256(html.split("<script>")[1].split("</script>")[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_navigation_reaches_every_section(document: Document) -> None:
    targets = [link["href"] for link in document.all("a")]
    assert targets == [f"#{section['id']}" for section in document.all("section")]
    ids = document.values("id")
    assert len(ids) == len(set(ids)) == 4


def test_every_picture_has_an_alternative_and_a_size(document: Document) -> None:
    images = document.all("img")
    assert [image["alt"] for image in images] == ["Green", HOSTILE]
    assert images[0]["width"] == "120"
    assert images[0]["height"] == "90"
    assert images[0]["class"] == "sharp"
    assert "class" not in images[1]
    # the drawing is trimmed to what it shows, at most 4 x 2 inches and a little padding
    assert 300 < int(images[1]["width"] or 0) <= 4 * 96 + 4
    assert 150 < int(images[1]["height"] or 0) <= 2 * 96 + 4


def test_markup_in_names_is_text(document: Document) -> None:
    assert document.text.count(HOSTILE) == 3  # a cell, a heading and its link
    assert not document.all("i")


def test_tables(html: str, document: Document) -> None:
    assert [row for row in document.all("tr") if row] == [{"class": "best"}]
    headings = [heading.get("class") for heading in document.all("th") if heading.get("scope") == "col"]
    assert headings == [None, "number", "number", None]
    assert "2,400,000" in document.text
    assert '<td class="number">\u2013</td>' in html
    assert "<td>12345</td>" in html  # provenance is shown as it is


def test_prose(html: str) -> None:
    assert "<p>First paragraph.</p>\n<p>Second, with +0.5\u00a0±\u00a00.3 and 95\u00a0%.</p>" in html
    assert "<td>95 % sure</td>" in html


def test_nothing_to_show() -> None:
    document = Document(render("Empty", "", [], {}))
    assert document.values("id") == ["provenance"]
    sections = [Section("One"), Section("Two", parts=(Table(("a", "b"), []),))]
    assert len(Document(render("Empty", "", sections, {})).all("section")) == 3


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "2,000"],
        ["86.1 - 88.2", "-"],
        ["+0.5 ± 0.3", ""],
        ["12 %", "7 %"],
        ["1e-4", "-3.5"],
        ["1.5 s", "20 s"],
        [1, None],
        [0.5, 3],
        ["2/3", "1/3"],
        ["0.1 (0.2)", "0.3 (0.4)"],
    ],
)
def test_numeric_columns(cells: list[object]) -> None:
    assert Table(("x",), [(cell,) for cell in cells]).numeric == (True,)


@pytest.mark.parametrize(
    "cells", [["linear"], ["1", "two"], ["8 x 8"], ["-", None], ["block 17"], [True], []]
)
def test_other_columns(cells: list[object]) -> None:
    assert Table(("x",), [(cell,) for cell in cells]).numeric == (False,)


def test_numbers_as_text() -> None:
    row: tuple[object, ...] = (1234567, 0.123456, 98765.4, 3e-5, None, "as it is", True)
    assert Table(tuple("abcdefg"), [row]).cells == [
        ["1,234,567", "0.1235", "98,765", "3e-05", "\u2013", "as it is", "True"]
    ]


def test_malformed_tables() -> None:
    with pytest.raises(AssertionError, match="2 columns, but a row has 1 cells"):
        Table(("a", "b"), [(1, 2), (1,)])
    with pytest.raises(AssertionError, match="no row 1"):
        Table(("a",), [(1,)], best=1)


def test_pictures_are_reproducible() -> None:
    assert Picture(drawing(), "", "a line").png() == Picture(drawing(), "", "a line").png()


def test_in_a_browser(html: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here to open the report in")
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(html)
    flags = shlex.split(
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1 "
        "--enable-logging=stderr --v=0 --window-size=1200,2000"
    )
    run = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert (pixels == GREEN).all(-1).sum() == 120 * 90


def test_commands_are_copied_and_runs_beneath_are_linked() -> None:
    command = "difflens probe --data 'a & b' --out DIR"
    sections = [
        Section("Next commands", commands=(command,)),
        *runs_beneath({"Seed 0": Path("seed-0/report.html"), "a/b": Path("a%2Fb/report.html")}),
    ]
    page = render("Title", "", sections, {"Command": command, "Seed": 0})
    document = Document(page)
    assert len(document.all("button")) == 2
    parts = ["difflens probe", "--data 'a & b'", "--out DIR"]  # a line ends between these
    spans = (escape(part, quote=True).replace("&#x27;", "&#39;") for part in parts)
    assert page.count(f"<code>{' '.join(f'<span>{span}</span>' for span in spans)}</code>") == 2
    assert document.text.count(command) == 2
    links = [link["href"] for link in document.all("a") if not link["href"].startswith("#")]
    assert links == ["seed-0/report.html", "a%252Fb/report.html"]
    assert runs_beneath({}) == []


def test_links_lead_to_the_reports_of_runs(tmp_path: Path) -> None:
    """Whatever the folders are called, and only where there is a report."""
    hostile = tmp_path / 'a "b" #1 50%<i>&?:'
    for run in (hostile, tmp_path / "pretrained", tmp_path / "unreported", tmp_path / "here"):
        (run / "model").mkdir(parents=True)
        (run / "config.yaml").write_text("command: probe")
    (hostile / "report.html").write_text("")
    (tmp_path / "pretrained" / "backbone.html").write_text("")
    (tmp_path / "model").mkdir()
    named = {
        "hostile": hostile,
        "model": f"random:{tmp_path / 'pretrained' / 'model'}",
        "unreported": tmp_path / "unreported",
        "no run": tmp_path / "model",
        "word": "timm:resnet18",
        "bundled": "fashion",
    }
    found = reports_of(tmp_path / "here", named)
    assert [*found] == ["hostile", "model"]
    rows = report_of(tmp_path / "here", "Report", hostile) | {"Seed": 0}
    page = tmp_path / "here" / "report.html"
    page.write_text(render("A", "", runs_beneath(found), rows))
    reports = {hostile / "report.html", tmp_path / "pretrained" / "backbone.html"}
    assert linked(page) == {path.resolve() for path in reports}
    assert str(hostile) in Document(page.read_text()).text
    assert "<i>" not in page.read_text()
    assert report_of(tmp_path, "Report", "fashion") == {}
