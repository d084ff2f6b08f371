"""A page, opened in a real browser."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest


def _chromium() -> str:
    """The file of a Chromium; skips without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    return browser


@contextmanager
def driven(path: Path, **options: Any) -> Iterator[Any]:
    """A page of Playwright that shows an HTML file, to move a pointer over; it fails on errors of the page.

    Args:
        options: of Playwright's `new_page`, such as `viewport` and `color_scheme`.
    """
    browser = _chromium()
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    problems: list[str] = []
    with driver.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_page(**options)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(path.resolve().as_uri())
        yield page
        opened.close()
    assert not problems


def open_in_browser(path: Path) -> tuple[str, list[str]]:
    """The DOM of an HTML file after loading, and what was written to the console; skips without a
    Chromium."""
    browser = _chromium()
    # its processes may outlive it for a moment, and write
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        run = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--enable-logging=stderr",
                "--v=0",
                f"--user-data-dir={profile}",
                "--virtual-time-budget=2000",
                "--dump-dom",
                path.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.returncode == 0, run.stderr
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]
