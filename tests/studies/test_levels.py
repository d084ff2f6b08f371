"""Commands on networks whose noise levels are sigmas or times: levels stay floats, ordered by log-SNR."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from difflens import CkaConfig, SweepConfig, SweepResult, TrainedModel, cka, load_backbone, sweep
from difflens.backbones.config import BackboneConfig
from difflens.processes.interpolant import LinearInterpolant
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.families import write_dit, write_edm, write_flow
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("images") / "tree", per_class=30)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flow(tmp_path_factory.mktemp("flow") / "model")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_sweep_of_times(
    flow: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("sweep", "--backbone", flow, "--data", images, "--blocks", 1, 5, "--workers", 0, "--out", out)
    assert cli(*words, "--noise-steps", 0.5, 0.1) == 0
    assert "at t = 0.1, 0.5 (log-SNR 4.4, 0.0)" in capsys.readouterr().out
    assert {path.name for path in (out / "steps").iterdir()} == {"t0.1.safetensors", "t0.5.safetensors"}
    assert yaml.safe_load((out / "config.yaml").read_text())["noise_steps"] == [0.1, 0.5]
    written = (out / "steps" / "t0.1.safetensors").stat().st_mtime_ns
    assert cli(*words, "--noise-steps", 0, 0.1, 0.5, "--resume") == 0
    assert (out / "steps" / "t0.1.safetensors").stat().st_mtime_ns == written
    metrics = read(out / "metrics.json")
    assert metrics["noise_steps"] == [0.0, 0.1, 0.5]
    assert all(isinstance(t, float) for t in metrics["noise_steps"])
    assert metrics["log_snr"] == [None, pytest.approx(4.3944, abs=1e-4), pytest.approx(0)]
    assert SweepResult.from_metrics(metrics, out).metrics() == metrics
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["noise_step"], row["log_snr"]) for row in rows[::2]] == [
        ("0.0", "inf"),
        ("0.1", "4.3944"),
        ("0.5", "0.0000"),
    ]
    dom, console = open_in_browser(out / "report.html")
    assert console == []
    assert "0.1 (4.4)" in dom
    assert "0.0 (\u221e)" in dom


def test_rows_go_from_the_least_to_the_most_noise_where_time_runs_towards_the_image(
    flow: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BackboneConfig.load

    def towards_image(*arguments: Any) -> Any:
        backbone = real(*arguments)
        backbone.process = LinearInterpolant(towards_noise=False)
        return backbone

    monkeypatch.setattr(BackboneConfig, "load", towards_image)
    config = SweepConfig(
        out=tmp_path / "run",
        backbone=str(flow),
        data=str(images),
        blocks=(5,),
        noise_steps=(0.1, 0.9),
        device="cpu",
        workers=0,
    )
    result = sweep(config)
    assert result.noise_steps == (0.9, 0.1)
    assert result.log_snr == (pytest.approx(4.3944, abs=1e-4), pytest.approx(-4.3944, abs=1e-4))
    assert yaml.safe_load((config.out / "config.yaml").read_text())["noise_steps"] == [0.1, 0.9]


@pytest.mark.parametrize(("write", "level"), [(write_edm, 0.5), (write_flow, 0.1), (write_dit, 50)])
def test_a_probe_at_levels_of_any_unit(write: Any, level: float, images: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    out = tmp_path / "run"
    words = ("probe", "--backbone", folder, "--data", images, "--head", "difformer", "--width", 16)
    words = (*words, "--blocks", 2, 3, "--noise-steps", level, 2 * level, "--epochs", 1, "--workers", 0)
    words = (*words, "--out", out, "--device", "cpu")
    assert cli(*words) == 0
    kind = type(level)
    stored = yaml.safe_load((out / "config.yaml").read_text())["noise_steps"]
    assert stored == [level, 2 * level]
    assert all(type(t) is kind for t in stored)
    levels = TrainedModel.load(out).probe.extractor.noise_steps
    assert levels == (level, 2 * level)
    assert all(type(t) is kind for t in levels)
    log_snr = load_backbone(str(folder)).process.by_noise(levels)
    first, second = (f"{value:.1f}" for value in log_snr.values())
    report = (out / "report.html").read_text()
    assert f"blocks 2, 3 at noise steps {level}, {2 * level} (log-SNR {first}, {second})" in report
    before = read(out / "metrics.json")
    assert cli(*words, "--resume") == 0
    assert read(out / "metrics.json") == before
    assert cli("explain", "--run", out, "--count", 1, "--device", "cpu", "--out", tmp_path / "explain") == 0
    assert f"t = {level} ({first})" in (tmp_path / "explain" / "report.html").read_text()


def test_two_backbones_of_different_families_are_compared(
    backbone_folder: Path, flow: Path, images: Path, tmp_path: Path
) -> None:
    words = ("--backbone", backbone_folder, "--other", flow, "--data", images, "--blocks", 1, 6)
    words = (*words, "--workers", 0, "--device", "cpu", "--limit", 80)
    words = (*words, "--noise-steps", 3, 40, "--other-noise-step", 0.5)
    assert cli("cka", *words, "--out", tmp_path / "there") == 0
    metrics = read(tmp_path / "there" / "metrics.json")
    assert metrics["noise_steps"] == [3, 40]
    assert len(metrics["log_snr"]) == 2
    rows = list(csv.DictReader((tmp_path / "there" / "table.csv").open()))
    others = [row for row in rows if row["other_backbone"] == str(flow)]
    assert {(row["other_noise_step"], row["other_log_snr"]) for row in others} == {("0.5", "0.0000")}
    report = (tmp_path / "there" / "report.html").read_text()
    assert "and the other backbone at t = 0.5 (log-SNR 0.0)" in report
    back = CkaConfig(
        out=tmp_path / "back",
        backbone=str(flow),
        other=str(backbone_folder),
        data=str(images),
        blocks=(1, 6),
        noise_steps=(0.1, 0.5),
        other_noise_step=40,
        limit=80,
        device="cpu",
        workers=0,
    )
    result = cka(back)
    assert list(result.mirrors) == [0.1, 0.5]
    assert {"blocks-t0.1.png", "models-t0.5.png"} <= {path.name for path in back.out.iterdir()}
    forth = read(tmp_path / "there" / "metrics.json")["cka"]["models-t40"]
    again = result.metrics()["cka"]["models-t0.5"]
    assert again[0][0] == pytest.approx(forth[0][0], abs=1e-4)


def test_a_level_on_the_command_line_is_a_number_of_its_kind(
    backbone_folder: Path, flow: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sweep", "--data", images, "--out", tmp_path / "run")
    assert cli(*words, "--backbone", backbone_folder, "--noise-steps", 0.5) == 2
    assert "noise step 0.5 is no whole number" in capsys.readouterr().err
    assert cli(*words, "--backbone", flow, "--noise-steps", 50) == 2
    assert "noise step 50 is outside the schedule: the backbone has times 0 to 1" in capsys.readouterr().err
