"""Warnings and progress bars on standard error, and tables as text."""

import os
import sys
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True)


def warn(problem: str) -> None:
    """Print a warning of one line on standard error, above any progress bar."""
    console.print(f"warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not enabled or "DIFFLENS_QUIET" in os.environ,
        refresh_per_second=4 if sys.stderr.isatty() else 0.2,
    )


def table_text(table: Table) -> str:
    """Return a table as standard output shows it, without the last end of line."""
    output = Console()
    with output.capture() as captured:
        output.print(table)
    return captured.get().removesuffix("\n")
