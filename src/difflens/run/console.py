"""Warnings and progress bars on standard error, and tables as text."""

import os
import sys
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from difflens.run.text import visible


class _Plain(Console):
    """A console that takes words as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


console = _Plain(stderr=True)


def warn(problem: str) -> None:
    """Print a warning of one line on standard error, above any progress bar."""
    console.print(f"warning: {problem}", style="yellow", soft_wrap=True)


@cache
def note(line: str) -> None:
    """Print a line on standard error, above any progress bar: once, however many runs a command holds."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_bar(enabled: bool = True) -> Progress:
    """Return a progress bar on standard error.

    Args:
        enabled: False shows nothing, for all processes but the first. The environment variable DIFFLENS_QUIET
            also hides all bars.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled or "DIFFLENS_QUIET" in os.environ,
        refresh_per_second=4 if sys.stderr.isatty() else 0.2,
    )


def table_text(table: Table) -> str:
    """Return a table as standard output shows it, without the last end of line."""
    output = _Plain(color_system=None)  # the command line escapes control characters, and so colours
    with output.capture() as captured:
        output.print(table)
    return captured.get().removesuffix("\n")
