"""`--precision auto`: what is measured, said, recorded and kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from difflens import ExtractConfig, ProbeConfig, SweepConfig, extract, load_backbone, probe, sweep
from difflens.extractors import precision
from difflens.run import measuring
from difflens.run.console import note
from tests.helpers.cli import run as cli


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.01)
    note.cache_clear()


def _speeds(monkeypatch: pytest.MonkeyPatch, factor: float) -> list[int]:
    """Let bfloat16 be `factor` times as fast; return a list that grows with each measurement."""
    measured: list[int] = []

    def fixed(step: Callable[[torch.dtype, int], object], images: int) -> float:
        measured.append(1)
        for dtype in (torch.float32, torch.bfloat16):
            step(dtype, images)
        return factor

    monkeypatch.setattr(precision, "bfloat16_speedup", fixed)
    return measured


def test_the_measurement_says_what_it_found(
    backbone_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = load_backbone(str(backbone_folder))
    before = torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    chosen = precision.measured_precision(backbone)
    said = capsys.readouterr().err
    factor = float(said.split("is read ")[1].split()[0])
    error = float(said.split("error of ")[1].split(" %")[0])
    assert f"precision: {chosen}, since {backbone.spec} is read" in said
    assert (chosen == "bfloat16") == (factor > 1.1 and error <= 2)
    assert error > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(("factor", "chosen"), [(1.5, "bfloat16"), (1.05, "float32")])
def test_the_faster_format_is_chosen(
    backbone_folder: Path, monkeypatch: pytest.MonkeyPatch, factor: float, chosen: str
) -> None:
    _speeds(monkeypatch, factor)
    assert precision.measured_precision(load_backbone(str(backbone_folder))) == chosen


def test_a_large_error_keeps_float32(backbone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _speeds(monkeypatch, 5.0)
    monkeypatch.setattr(precision, "_TOLERANCE", 1e-6)
    assert precision.measured_precision(load_backbone(str(backbone_folder))) == "float32"


def test_pixels_have_no_format_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision.measured_precision(load_backbone("pixels:3x8")) == "float32"
    assert "precision: float32, since pixels:3x8 has no weights" in capsys.readouterr().err


def test_the_choice_is_recorded_and_kept(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = _speeds(monkeypatch, 2.0)
    config = SweepConfig(
        data=str(image_tree),
        backbone=str(backbone_folder),
        out=tmp_path / "auto",
        blocks=(6,),
        noise_steps=(5,),
        device="cpu",
        workers=0,
        precision="auto",
    )
    found = sweep(config)
    assert yaml.safe_load((config.out / "config.yaml").read_text())["precision"] == "bfloat16"
    same = sweep(replace(config, precision="bfloat16", out=tmp_path / "named"))
    assert found.accuracy == same.accuracy
    sweep(replace(config, noise_steps=(5, 20), resume=True))
    assert measured == [1]  # the continuation has that of the run


def test_seeds_share_a_measurement_and_a_store_decides(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = _speeds(monkeypatch, 2.0)
    data, backbone = str(image_tree), str(backbone_folder)
    common = {"data": data, "backbone": backbone, "device": "cpu", "workers": 0}
    probe(ProbeConfig(out=tmp_path / "run", head="knn", seeds=2, precision="auto", **common))
    assert measured == [1]
    recorded = yaml.safe_load((tmp_path / "run" / "seed-1" / "config.yaml").read_text())
    assert recorded["precision"] == "bfloat16"
    extract(ExtractConfig(out=tmp_path / "store", blocks=(6,), noise_steps=(5,), **common))
    store = tmp_path / "store"
    named = ProbeConfig(data=data, backbone=backbone, device="cpu", out=tmp_path / "read", head="knn")
    probe(replace(named, store=store, precision="auto"))
    assert yaml.safe_load((tmp_path / "read" / "config.yaml").read_text())["precision"] == "float32"
    assert measured == [1]


def test_a_plan_measures_nothing(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = _speeds(monkeypatch, 2.0)
    words = ["probe", "--data", str(image_tree), "--out", str(tmp_path / "run"), "--precision", "auto"]
    assert cli(*words, "--dry-run") == 0
    assert "planned for float32, since auto is measured when the run begins" in capsys.readouterr().err
    assert not measured
