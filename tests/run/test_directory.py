"""Run directories: files are complete, and another run's folder is refused."""

import json
from pathlib import Path

import pytest
import torch

from difflens.errors import DiffLensError
from difflens.run import directory as runs
from difflens.run.directory import RunDirectory


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DiffLensError, match="is not empty and holds no run"):
        RunDirectory(tmp_path, "probe", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(DiffLensError, match="is a file"):
        RunDirectory(tmp_path / "out", "probe", {})


def test_another_run_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", "probe", {"seed": 0, "blocks": (1, 2)})
    with pytest.raises(DiffLensError, match="already holds a run: choose another folder or add --resume"):
        RunDirectory(tmp_path / "run", "probe", {"seed": 0, "blocks": (1, 2)})
    RunDirectory(tmp_path / "run", "probe", {"seed": 0, "blocks": [1, 2]}, resume=True)
    with pytest.raises(DiffLensError, match="seed was 0, now 1"):
        RunDirectory(tmp_path / "run", "probe", {"seed": 1, "blocks": [1, 2]}, resume=True)
    with pytest.raises(DiffLensError, match="command was 'probe', now 'demo'"):
        RunDirectory(tmp_path / "run", "demo", {"seed": 0, "blocks": [1, 2]}, resume=True)


def test_a_folder_in_which_a_run_was_killed_at_once_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".config.partial.yaml").write_text("comm")
    RunDirectory(tmp_path, "probe", {}, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_is_one_commands_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_LOCK_ATTEMPTS", 1)
    run = RunDirectory(tmp_path / "run", "probe", {})
    with run.working(), pytest.raises(DiffLensError, match="another process is writing to"):
        RunDirectory(tmp_path / "run", "probe", {}, resume=True)
    RunDirectory(tmp_path / "run", "probe", {}, resume=True)


def test_a_list_may_grow_and_nothing_else(tmp_path: Path) -> None:
    RunDirectory(tmp_path, "sweep", {"noise_steps": (5, 20), "pool": 2}, growing="noise_steps")
    again = {"resume": True, "growing": "noise_steps"}
    RunDirectory(tmp_path, "sweep", {"noise_steps": (5, 7, 20), "pool": 2}, **again)  # looked, and refused
    RunDirectory(tmp_path, "sweep", {"noise_steps": (5, 10, 20), "pool": 2}, **again).grow()
    with pytest.raises(DiffLensError, match=r"noise_steps was \[5, 10, 20\], now \[5, 20\]"):
        RunDirectory(tmp_path, "sweep", {"noise_steps": (5, 20), "pool": 2}, **again)
    with pytest.raises(DiffLensError, match="pool was 2, now 4"):
        RunDirectory(tmp_path, "sweep", {"noise_steps": (5, 10, 20, 30), "pool": 4}, **again)


def test_an_error_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", "probe", {})
    with pytest.raises(DiffLensError), run.working():
        run.log({"epoch": 1})
        raise DiffLensError("bad image")
    assert not (tmp_path / "run").exists()


def test_an_interruption_keeps_what_the_run_has_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "at-once", "probe", {})
    with pytest.raises(KeyboardInterrupt), run.working():
        raise KeyboardInterrupt
    assert not (tmp_path / "at-once").exists()
    run = RunDirectory(tmp_path / "later", "sweep", {})
    with pytest.raises(KeyboardInterrupt), run.working():
        run.write("rungs/3.json", "{}")
        raise KeyboardInterrupt
    assert sorted(path.name for path in (tmp_path / "later").iterdir()) == ["config.yaml", "rungs"]


def test_an_error_after_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", "probe", {})
    with pytest.raises(DiffLensError), run.working():
        run.save_checkpoint({"epoch": 1})
        raise DiffLensError("bad image")
    assert run.load_checkpoint() == {"epoch": 1, "log_lines": 0}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", "probe", {})
    run.write_json("metrics.json", {"top1": 0.5})

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(DiffLensError, match=r"cannot write .*metrics\.json: disk full"):
        run.write_with("metrics.json", fail)
    assert json.loads((run.path / "metrics.json").read_text()) == {"top1": 0.5}


def test_the_log_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", "probe", {})
    run.log({"epoch": 1})
    run.save_checkpoint({"weights": torch.ones(2), "epoch": 1})
    run.log({"epoch": 2})
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')  # killed while writing
    run.release()
    resumed = RunDirectory(tmp_path / "run", "probe", {}, resume=True)
    state = resumed.load_checkpoint()
    assert state is not None
    assert state["epoch"] == 1
    resumed.cut_log(state["log_lines"])
    assert run.read_log() == [{"epoch": 1}]


def test_a_line_that_broke_off_is_cut(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", "probe", {})
    run.log({"epoch": 1})
    run.release()
    path = tmp_path / "run" / "log.jsonl"
    for rest in ('{"head": "random_b', '{"epoch": 2, "probe": [{"block": 1}'):
        path.write_text(path.read_text() + rest)
        again = RunDirectory(tmp_path / "run", "probe", {}, resume=True)
        assert again.read_log() == [{"epoch": 1}]
        again.log({"epoch": 2})
        assert again.read_log() == [{"epoch": 1}, {"epoch": 2}]
        again.cut_log(1)
        again.release()
