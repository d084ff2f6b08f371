"""The demo end to end at a reduced size."""

import json
from pathlib import Path

import pytest

from difflens import DemoConfig, DiffLensError, TrainedModel, demo

KEYS = {"pixels", "random_backbone", "linear", "mlp", "cnn", "attention", "difformer", "diffeed"}


def test_the_demo_end_to_end(tmp_path: Path) -> None:
    config = DemoConfig(
        out=tmp_path / "demo",
        train_images=160,
        test_images=64,
        effort=0.1,
        samples=4,
        sampling_steps=2,
        device="cpu",
    )
    returned = demo(config)
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["results"] == json.loads(json.dumps(returned["results"]))
    assert set(metrics["results"]) == KEYS
    for row in metrics["results"].values():
        assert 0 <= row["top1"] <= 1
        assert row["trainable_parameters"] > 0
        assert row["train_seconds"] >= 0
    report = (config.out / "report.html").read_text()
    for title in (
        "Raw pixels",
        "Untrained backbone",
        "Linear probe",
        "MLP",
        "CNN",
        "Attention",
        "DifFormer",
        "DifFeed",
    ):
        assert title in report
    assert report.count("data:image/png;base64,") == 5
    assert TrainedModel.load(config.out).classes[0] == "T-shirt/top"
    with pytest.raises(DiffLensError, match="already holds a run"):
        demo(config)
