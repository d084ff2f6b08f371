"""A page, opened in a real browser."""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def open_in_browser(path: Path) -> tuple[str, list[str]]:
    """The DOM of an HTML file after loading, and what was written to the console; skips without a
    Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
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
