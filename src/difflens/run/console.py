"""Warnings and progress bars on standard error, and tables as text."""

import math
import os
import time
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
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


def first_process() -> bool:
    """Return True on the process that prints, of those that `torchrun` started."""
    return int(os.environ.get("RANK", 0)) == 0


def warn(problem: str) -> None:
    """Print a warning of one line on standard error, above any progress bar."""
    console.print(f"warning: {problem}", style="yellow", soft_wrap=True)


@cache
def note(line: str) -> None:
    """Print a line on standard error, above any progress bar: once, however many runs a command holds."""
    if first_process():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


LINE_SECONDS = 30.0
"""The time between two lines of progress off a terminal."""


class _Lines(Progress):
    """Progress as plain lines, for logs: one every `LINE_SECONDS`, and one at the end if there was any.

    A line has the title, the number done, the note, and the time left at the mean speed so far.
    """

    def __init__(self, enabled: bool):
        super().__init__(disable=True)
        self.enabled = enabled
        self._began: dict[TaskID, tuple[float, float]] = {}
        self._said: dict[TaskID, float] = {}

    def add_task(self, description: str, *options: Any, **fields: Any) -> TaskID:
        task = super().add_task(description, *options, **fields)
        now = time.monotonic()
        self._began[task] = now, self.tasks[task].completed
        self._said[task] = now
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def stop(self) -> None:
        super().stop()
        for task, said in self._said.items():
            if said > self._began[task][0]:
                self._print(task)
        self._said.clear()

    def _say(self, task: TaskID) -> None:
        if time.monotonic() - self._said.get(task, math.inf) >= LINE_SECONDS:
            self._said[task] = time.monotonic()
            self._print(task)

    def _print(self, number: TaskID) -> None:
        if not self.enabled:
            return
        task = self._tasks[number]
        total = task.total or 0
        began, earlier = self._began[number]
        seconds = time.monotonic() - began
        done = task.completed - earlier
        left = seconds / done * (total - task.completed) if done else math.inf
        end = f"{duration(left)} left" if task.completed < total else f"done in {duration(seconds)}"
        words = [f"{task.description}: {task.completed:,.0f} of {total:,.0f}", task.fields.get("note"), end]
        console.print(", ".join(word for word in words if word), soft_wrap=True)


class _InAll(ProgressColumn):
    """The time since the command began."""

    def render(self, task: Task) -> Text:
        return Text(f"{duration(time.monotonic() - _BEGAN)} in all")


_BEGAN = time.monotonic()


def duration(seconds: float) -> str:
    """Return a time in words: "45 s", "12 min" or "3 h 20 min"; "unknown time" if it is not finite."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress_bar(enabled: bool = True) -> Progress:
    """Return the progress of a task on standard error: a bar on a terminal, and plain lines elsewhere.

    Args:
        enabled: False shows nothing, for all processes but the first. The environment variable DIFFLENS_QUIET
            also hides all progress.
    """
    enabled = enabled and "DIFFLENS_QUIET" not in os.environ
    if not console.is_terminal:
        return _Lines(enabled)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        _InAll(),
        console=console,
        disable=not enabled,
        refresh_per_second=4,
    )


def table_text(table: Table) -> str:
    """Return a table as standard output shows it, without the last end of line."""
    output = _Plain(color_system=None)  # the command line escapes control characters, and so colours
    with output.capture() as captured:
        output.print(table)
    return captured.get().removesuffix("\n")
