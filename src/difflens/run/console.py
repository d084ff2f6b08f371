"""What a person sees while a command runs: warnings and progress, on standard error."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True)


def warn(problem: str) -> None:
    """One line on standard error, above any progress bar."""
    console.print(f"warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def progress_bar(enabled: bool = True) -> Progress:
    """A progress bar on standard error, silent on all processes but one and where `DIFFLENS_QUIET` is set."""
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
    """A table as standard output shows it, without the last end of line."""
    output = Console()
    with output.capture() as captured:
        output.print(table)
    return captured.get().removesuffix("\n")
