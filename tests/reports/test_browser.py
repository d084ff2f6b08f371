"""Reports load in a real browser without a message on the console."""

from pathlib import Path

from tests.helpers.browser import open_in_browser
from tests.helpers.probes import GRID, NEIGHBOURS, evaluation, report


def test_probe_report_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report([evaluation(0), evaluation(1)], grid=GRID, neighbours=NEIGHBOURS)[0])
    dom, console = open_in_browser(page)
    assert not console
    titles = ("Result", "Training", "Per class", "Most confused classes", "Confusion matrix", "Provenance")
    assert [title for title in titles if f"<h2>{title}</h2>" not in dom] == []


def test_errors_of_a_page_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<h2>Wrong</h2><script>console.error('deliberate'); missing()</script>")
    dom, console = open_in_browser(page)
    assert "<h2>Wrong</h2>" in dom
    assert len(console) == 2
    assert "deliberate" in console[0]
    assert "missing is not defined" in console[1]
