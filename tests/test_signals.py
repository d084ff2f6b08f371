"""Signals and closed pipes, as a user's shell sees them: one line, the conventional exit status."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflens import pretrain
from difflens.data.split import FileSplit
from difflens.pretraining.gradients import Gradients
from difflens.run.signals import HeldSignals, Stopped
from tests.helpers.cli import run as run_here
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import checkpoint, config, curve

PRETRAIN = ("--preset", "tiny", "--epochs", 3, "--batch-size", 4, "--device", "cpu", "--workers", 0)


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "difflens", *map(str, words)]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DIFFLENS_QUIET": "1"},
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    """An uninterrupted run of pretrain, and its words."""
    root = tmp_path_factory.mktemp("whole")
    words = ("pretrain", "--data", make_image_tree(root / "images"), *PRETRAIN, "--precision", "float32")
    assert run_here(*words, "--out", root / "run") == 0
    return root / "run", words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_steps_of_pretrain(
    whole: tuple[Path, tuple[object, ...]], tmp_path: Path, number: int
) -> None:
    """The process is real, and stopped after the first of its 27 steps."""
    uninterrupted, words = whole
    stopped = tmp_path / "stopped"
    process = start(*words, "--checkpoint-minutes", 0, "--out", stopped)
    while not (stopped / "checkpoints" / "last.pt").exists():
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = errors.splitlines()
    assert line.startswith("difflens: stopped in epoch 1 (step ")
    assert 0 < checkpoint(stopped)["step"] < 27
    assert run_here(*words, "--out", stopped, "--resume") == 0
    assert curve(stopped) == curve(uninterrupted)
    ends = [checkpoint(folder) for folder in (stopped, uninterrupted)]
    for part in ("unet", "optimizer", "ema"):
        torch.testing.assert_close(ends[0][part], ends[1][part], atol=0, rtol=0)


def test_losses_before_a_signal_enter_the_log(
    scene_folder: Path, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three signals within an interval of the log, two of them in steps that follow each other."""
    from difflens.tasks.objectives import DenseObjective

    words = ["segment", "--backbone", backbone_folder, "--data", scene_folder, "--iterations", 45]
    words += ["--batch-size", 2, "--head", "linear", "--side", 16, "--workers", 0, "--device", "cpu"]
    assert run_here(*words, "--out", tmp_path / "whole") == 0
    step = DenseObjective.step

    def interrupted(self: DenseObjective, batch: tuple[int, object]) -> Tensor:
        loss = step(self, batch)  # type: ignore[arg-type]
        if batch[0] in (5, 12, 13):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(DenseObjective, "step", interrupted)
    codes = [run_here(*words, "--out", tmp_path / "run", "--resume") for _ in range(4)]
    assert codes == [143, 143, 143, 0]
    logs = [(tmp_path / name / "log.jsonl").read_text(encoding="utf-8") for name in ("whole", "run")]
    assert logs[0] == logs[1]


def test_the_clock_is_looked_at_between_looks(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a third of the clock's time, and 50 to a look: a checkpoint is never more than 3 steps old."""
    monkeypatch.setattr("difflens.training.loop.CLOCK_SECONDS", 0.3)
    compute, seen = Gradients.__call__, []
    folder = tmp_path / "run"

    def step(self: Gradients, *inputs: Tensor) -> Tensor:
        time.sleep(0.1)
        path = folder / "checkpoints" / "last.pt"
        seen.append(len(seen) - (checkpoint(folder)["step"] if path.exists() else 0))
        return compute(self, *inputs)

    monkeypatch.setattr(Gradients, "__call__", step)
    pretrain(replace(config(folder, image_tree), epochs=2, batch_size=2, max_minutes=None))
    assert max(seen) <= 3


def test_a_second_signal_acts_at_once() -> None:
    with HeldSignals() as held:
        os.kill(os.getpid(), signal.SIGINT)
        assert held.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Stopped(15, "x").number == 15


def test_an_interruption_of_the_imports_is_one_line(tmp_path: Path) -> None:
    program = (
        "import signal, os, threading, time\n"
        "threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "from difflens.__main__ import main\n"
        "import sys; sys.argv[0] = 'difflens'; main()"
    )
    command = [sys.executable, "-c", program, "probe", "--out", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stderr == "difflens: interrupted\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"]])
def test_a_pipe_that_closes_early(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*words, stdout=write)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, "")


@pytest.mark.parametrize(
    "words", [["probe", "--augment", "flip"], ["pretrain", "--preset", "tiny", "--precision", "float32"]]
)
def test_a_process_that_reads_images_is_killed(
    words: list[object],
    image_tree: Path,
    backbone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def killed(self: FileSplit, row: int) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    main, image = os.getpid(), FileSplit.image
    monkeypatch.setattr(FileSplit, "image", lambda *a: (image if os.getpid() == main else killed)(*a))
    backbone = ["--backbone", backbone_folder, "--head", "linear"] if words[0] == "probe" else []
    options = ("--data", image_tree, "--workers", 2, "--batch-size", 8, "--device", "cpu")
    assert run_here(*words, *backbone, *options, "--out", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("difflens: error: a process that reads images was lost: DataLoader worker (pid")
