"""Progress off a terminal: plain lines at intervals."""

import os
import subprocess
import sys

import pytest

from difflens.run import console

PROGRAM = """
import time
from difflens.run import console
console.LINE_SECONDS = {every}
with console.progress_bar() as bar:
    task = bar.add_task("linear on fashion, seed 3", total=1200, completed=200, note="")
    bar.update(task, note="epoch 2, loss 0.5000, 12.0 images/s")
    time.sleep(0.25)
    bar.advance(task, 500)
    time.sleep(0.02)
    bar.advance(task, 500)
"""


def lines(every: float, **environment: str) -> list[str]:
    known = {key: value for key, value in os.environ.items() if key != "DIFFLENS_QUIET"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(every=every)],
        capture_output=True,
        text=True,
        check=True,
        env=known | environment,
    )
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_a_line_has_step_epoch_loss_rate_and_time_left() -> None:
    note = "epoch 2, loss 0.5000, 12.0 images/s"
    assert lines(0.2) == [
        f"linear on fashion, seed 3: 700 of 1,200, {note}, 0 s left",
        f"linear on fashion, seed 3: 1,200 of 1,200, {note}, done in 0 s",
    ]


def test_short_work_says_nothing() -> None:
    assert lines(30) == []
    assert lines(0.2, DIFFLENS_QUIET="1") == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(44.6, "45 s"), (120, "2 min"), (12000, "3 h 20 min"), (float("inf"), "unknown time")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words
