"""Two processes on the CPU (gloo), as `torchrun` starts them."""

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.processes import run_two


@pytest.mark.parametrize("head", ["linear", "diffeed"])
def test_probe_scores_every_test_image_once(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, head: str
) -> None:
    """Cached and online features; two processes share 15 test images."""
    out = tmp_path / "run"
    run_two(
        "probe",
        "--backbone",
        backbone_folder,
        "--data",
        image_tree,
        "--head",
        head,
        "--blocks",
        6,
        "--noise-steps",
        5,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        out,
    )
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 15
    assert len({row["image"] for row in rows}) == 15
    assert json.loads((out / "metrics.json").read_text())["test_images"] == 15
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


def test_pretrain(image_tree: Path, tmp_path: Path) -> None:
    run_two(
        "pretrain",
        "--preset",
        "tiny",
        "--data",
        image_tree,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert (tmp_path / "run" / "model" / "unet" / "config.json").is_file()


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_dense_tasks_evaluate_every_image_once(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, task: str
) -> None:
    """Two processes share five validation images."""
    out = tmp_path / "run"
    run_two(
        task,
        "--backbone",
        backbone_folder,
        "--data",
        scene_folder,
        "--iterations",
        2,
        "--batch-size",
        4,
        "--width",
        16,
        "--side",
        32,
        "--device",
        "cpu",
        "--out",
        out,
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["val_images"] == 5
    if task == "segment":
        assert metrics["pixels"] == 5 * 32 * 32
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    assert (out / "model" / "model.safetensors").is_file()
