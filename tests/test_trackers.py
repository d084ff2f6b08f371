"""`--log`: every command that trains gives its curves to trackers, and trains as without them."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

import difflens
from difflens import CompareConfig, DetectConfig, DiffLensError, DistillConfig, ProbeConfig, SegmentConfig
from difflens.run.directory import RunDirectory, checkpoint_of
from difflens.run.trackers import STATE, Trackers
from tests.helpers import trackers
from tests.helpers.cli import run as cli
from tests.helpers.pretraining import config as pretraining
from tests.helpers.processes import run_two
from tests.helpers.trackers import Recorder, curves

SMALL: dict[str, Any] = {"device": "cpu", "workers": 0}
DENSE: dict[str, Any] = {
    "side": 32,
    "noise_steps": (3,),
    "iterations": 20,
    "batch_size": 4,
    "width": 16,
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture
def make(backbone_folder: Path, image_tree: Path, scene_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Makes the configuration of a small run of a command."""
    backbone = str(backbone_folder)

    def made(command: str, name: str, **changes: Any) -> Any:
        out = tmp_path / name
        configs: dict[str, Any] = {
            "probe": lambda: ProbeConfig(
                out=out, backbone=backbone, data=str(image_tree), head="mlp", epochs=3, batch_size=8, **SMALL
            ),
            "segment": lambda: SegmentConfig(out=out, backbone=backbone, data=scene_folder, **DENSE),
            "detect": lambda: DetectConfig(
                out=out, backbone=backbone, data=scene_folder, scale=(1.0, 1.0), proposals=16, **DENSE
            ),
            "distill": lambda: DistillConfig(
                out=out, backbone=backbone, data=str(image_tree), epochs=2, batch_size=8, **SMALL
            ),
            "pretrain": lambda: pretraining(out, image_tree, method="simclr", epochs=2),
        }
        return replace(configs[command](), **changes)

    return made


def run(config: Any) -> None:
    getattr(difflens, config.command)(config)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def step_of(row: dict[str, Any], steps: int) -> int:
    return row.get("iteration") or row["epoch"] * steps


STEPS = {"probe": 5, "segment": 1, "detect": 1, "distill": 5, "pretrain": 5}
"""Steps of an epoch, or between two rows of the log."""


@pytest.mark.parametrize("command", [*STEPS])
def test_curves_are_those_of_the_log_and_nothing_else_changes(command: str, make: Callable[..., Any]) -> None:
    logged, plain = make(command, "logged", log=("tensorboard",)), make(command, "plain")
    run(logged)
    run(plain)
    written, log = curves(logged.out), rows(logged.out)
    at = [step_of(row, STEPS[command]) for row in log]
    assert len(at) > 1
    for name in ("loss", "learning_rate"):
        points = [(step, pytest.approx(row[name], rel=1e-6)) for step, row in zip(at, log, strict=True)]
        assert written[name] == points
    parts = {name for row in log for name, value in row.items() if isinstance(value, float)}
    assert parts <= {*written}
    results = {"probe": "test/top1", "segment": "val/miou", "detect": "val/mask_ap"}
    if command in results:
        ((step, value),) = written[results[command]]
        metrics = json.loads((logged.out / "metrics.json").read_text())
        assert (step, value) == (at[-1], pytest.approx(metrics[results[command].split("/")[1]], abs=1e-6))
    # the same training to the last bit, and no file of trackers without --log
    mine, theirs = (torch.load(checkpoint_of(each.out), weights_only=True) for each in (logged, plain))
    assert json.dumps(log[-1]["loss"]) == json.dumps(rows(plain.out)[-1]["loss"])
    for part in ("probe", "network", "optimizer"):
        compare(mine.get(part), theirs.get(part))
    assert not (plain.out / STATE).exists()
    assert not (plain.out / "tensorboard").exists()


def compare(mine: Any, theirs: Any) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            compare(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        for each, other in zip(mine, theirs, strict=True):
            compare(each, other)
    else:
        assert mine == theirs


@pytest.mark.parametrize("command", ["probe", "segment", "pretrain"])
def test_a_continued_run_gives_no_point_twice(
    command: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies between two checkpoints, so steps are made twice."""
    runs = trackers.record(monkeypatch)
    stopped = make(command, "stopped", log=("tensorboard", "wandb"))
    log, seen = Trackers.log, []

    def die(self: Trackers, step: int, values: Any) -> None:
        log(self, step, values)
        seen.append(step)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trackers, "log", die)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    monkeypatch.setattr(Trackers, "log", log)
    assert not next(iter(runs.values())).open
    run(replace(stopped, resume=True))
    ((name, kept),) = runs.items()
    assert kept.options["id"] == name
    assert len(kept.configs) == 1
    looks = [step for step, values in kept.points if "loss" in values]
    assert looks[:2] == seen
    assert looks == sorted({*looks})
    assert [step for step, _ in curves(stopped.out)["loss"]] == looks
    assert len(looks) == len(rows(stopped.out))


def test_a_tracker_that_joins_later_has_the_later_points(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make("probe", "run")
    save, calls = RunDirectory.save_checkpoint, []

    def die(self: RunDirectory, state: Any) -> None:
        save(self, state)
        calls.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr("difflens.tasks.classification.train._CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(RunDirectory, "save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    monkeypatch.setattr(RunDirectory, "save_checkpoint", save)
    run(replace(stopped, resume=True, log=("tensorboard",)))
    assert [step for step, _ in curves(stopped.out)["loss"]] == [10, 15]


def test_each_seed_and_each_probe_of_a_comparison_is_a_run_of_its_own(
    make: Callable[..., Any], image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = trackers.record(monkeypatch)
    run(make("probe", "seeds", seeds=2, log=("wandb",)))
    assert [each.options["name"] for each in runs.values()] == ["seed-0", "seed-1"]
    assert [each.configs[0]["seed"] for each in runs.values()] == [0, 1]
    runs.clear()
    options: dict[str, Any] = {"protocols": ("linear", "knn"), "epochs": 1, "samples": 0}
    backbones = ("pixels:3x16",)
    run(
        CompareConfig(
            out=tmp_path / "c", backbones=backbones, data=str(image_tree), log=("wandb",), **options, **SMALL
        )
    )
    assert [each.options["name"] for each in runs.values()] == ["linear"]


def test_what_trackers_are_told(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = trackers.record(monkeypatch)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    config = make("probe", "run", log=("wandb", "wandb"))
    run(config)
    (told,) = runs.values()
    assert told.options["project"] == "mine"
    assert told.options["dir"] == config.out
    assert not told.open
    assert told.configs[0]["head"] == "mlp"
    assert told.configs[0]["blocks"] == "[7]"
    assert all(isinstance(value, bool | int | float | str) for value in told.configs[0].values())


def test_a_tracker_that_fails_is_left_out(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = trackers.record(monkeypatch)
    monkeypatch.setattr(Recorder, "fails_at", 10)
    config = make("probe", "run", log=("wandb", "tensorboard"))
    run(config)
    (told,) = runs.values()
    assert [step for step, _ in told.points] == [5]
    assert [step for step, _ in curves(config.out)["loss"]] == [5, 10, 15]
    said = capsys.readouterr().err
    assert said.count("--log wandb failed, and the run goes on without it: the service is gone") == 1


def test_a_tracker_that_does_not_start_leaves_nothing(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers.record(monkeypatch)
    monkeypatch.setattr(Recorder, "fails_at", 0)
    config = make("probe", "run", log=("tensorboard", "wandb"))
    with pytest.raises(DiffLensError, match=r"^--log wandb does not start: no API key$"):
        run(config)
    assert not config.out.exists()


@pytest.mark.parametrize("command", [*STEPS])
def test_a_missing_library_is_named_before_anything_is_written(
    command: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = make(command, "run", log=("mlflow",))
    with pytest.raises(DiffLensError, match=r"^--log mlflow: its library is missing; pip install mlflow$"):
        run(config)
    assert not config.out.exists()
    if command != "distill":
        with pytest.raises(DiffLensError, match="--log mlflow: its library is missing"):
            difflens.plan(config)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(DiffLensError, match=r'pip install "difflens\[tensorboard\]"'):
        run(replace(config, log=("tensorboard",)))


def test_other_names_and_heads_that_train_nothing_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(DiffLensError, match=r"no log 'tensorbord'; did you mean tensorboard\? there are"):
        run(make("probe", "run", log=("tensorbord",)))
    config = make("probe", "run", head="knn", epochs=None, batch_size=None, log=("tensorboard",))
    with pytest.raises(DiffLensError, match="k-NN trains nothing: leave out --log"):
        run(config)


def test_a_run_writes_and_reads_the_option(make: Callable[..., Any], tmp_path: Path) -> None:
    config = make("probe", "run", log=("tensorboard",), epochs=1)
    words = ["--head", "mlp", "--epochs", 1, "--device", "cpu", "--workers", 0, "--log", "tensorboard"]
    source = ["--backbone", config.backbone, "--data", config.data]
    assert cli("probe", *source, *words, "--out", config.out, "--dry-run") == 0
    assert not config.out.exists()
    assert cli("probe", *source, *words, "--out", config.out) == 0
    assert yaml.safe_load((config.out / "config.yaml").read_text())["log"] == ["tensorboard"]
    assert cli("probe", "--config", config.out, "--out", tmp_path / "again", "--device", "cpu") == 0
    assert curves(tmp_path / "again")["loss"] == curves(config.out)["loss"]


def test_one_of_two_processes_logs(make: Callable[..., Any], image_tree: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "two", make("probe", "one")
    words = ["--backbone", config.backbone, "--data", image_tree, "--head", "mlp", "--epochs", 2]
    run_two("probe", *words, "--workers", 0, "--device", "cpu", "--log", "tensorboard", "--out", out)
    assert len([*(out / "tensorboard").iterdir()]) == 1
    assert len(curves(out)["loss"]) == len(rows(out)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "trackers.json"),
        ('{"tensorboard": {"step": -1, "run": "a"}}', r"trackers.json: .*step"),
        ('{"tensorboard": {"step": 3}}', r"trackers.json: .*run"),
    ],
)
def test_a_damaged_state_is_named(tmp_path: Path, content: str, message: str) -> None:
    Accelerator(cpu=True)
    (tmp_path / STATE).write_text(content)
    with pytest.raises(DiffLensError, match=message):
        Trackers(tmp_path, ("tensorboard",))
