"""The README's command lines for networks other than the bundled one, on small random folders."""

import csv
from pathlib import Path

import pytest

from difflens import TrainedModel
from tests.helpers.cli import run
from tests.helpers.every import write

CPU = ("--device", "cpu")


def test_a_sweep_of_a_dit_folder(tmp_path: Path) -> None:
    line = "--data fashion --noise-steps 50 200 --condition null --tap adaln --workers 0 --budget 60"
    spec, out = write("DiT", tmp_path).spec, tmp_path / "out"
    assert run("sweep", "--backbone", spec, *line.split(), *CPU, "--out", out) == 0
    rows = csv.DictReader((out / "table.csv").read_text().splitlines())
    assert {(row["noise_step"], row["block"]) for row in rows} == {
        (t, b) for t in ("50", "200") for b in "1234"
    }


def test_a_probe_of_a_flow_folder_at_several_times(
    tmp_path: Path, image_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DifFormer reads several noise levels, so it is the default then; attention refuses them."""
    line = ["probe", "--backbone", write("flow", tmp_path).spec, "--noise-steps", "0.1", "0.5"]
    common = ["--data", image_tree, "--workers", "0", *CPU]
    assert run(*line, *common, "--head", "attention", "--out", tmp_path / "one") == 2
    assert "the attention head reads one map, not 2: --head difformer reads" in capsys.readouterr().err
    small = ["--epochs", "1", "--width", "16"]
    assert run(*line, *common, *small, "--out", tmp_path / "several") == 0
    model = TrainedModel.load(tmp_path / "several" / "model")
    assert model.head.name == "difformer"
    assert model.probe.extractor.noise_steps == (0.1, 0.5)


def test_images_of_an_ldm_folder(tmp_path: Path) -> None:
    spec, out = write("LDM", tmp_path).spec, tmp_path / "out"
    assert run("generate", "--backbone", spec, "-n", 4, "--steps", 5, *CPU, "--out", out) == 0
    assert len([*(out / "images").glob("*.png")]) == 4
