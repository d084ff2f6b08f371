"""`demo` end to end at a reduced size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from difflens import DemoConfig, DiffLensError, TrainedModel, demo
from difflens.pretraining.export import card_fact
from difflens.reports.demo import TITLES
from tests.helpers import families
from tests.helpers.html import linked

KEYS = {"pixels", "random_backbone", "linear", "mlp", "cnn", "attention", "difformer", "diffeed"}


def test_the_demo_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = DemoConfig(
        out=tmp_path / "demo",
        train_images=160,
        test_images=64,
        effort=0.1,
        samples=4,
        sampling_steps=2,
        device="cpu",
    )
    said: list[str] = []
    returned = demo(config, said.append)
    assert said[0] == "Top-1 accuracy on 64 test images, 95 % intervals:"
    assert [line.partition(": ")[0] for line in said[1:]] == [TITLES[name] for name in returned.results]
    assert f"{100 * returned.results['pixels'].top1:.1f} % (" in said[1]
    assert "--blocks" not in capsys.readouterr().err  # the demo has no such option
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["results"] == json.loads(json.dumps(returned.metrics()["results"]))
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
        "Memorisation check",
        "the 160 training images of this run",
        "The network predicts epsilon, the noise.",
    ):
        assert title in report
    assert report.count("data:image/png;base64,") == 6
    beneath = {(config.out / "heads" / name / "report.html").resolve() for name in KEYS}
    assert linked(config.out / "report.html") == {*beneath, (config.out / "explore/explore.html").resolve()}
    assert len(list((config.out / "pictures").iterdir())) == 8
    assert TrainedModel.load(config.out).classes[0] == "T-shirt/top"
    with pytest.raises(DiffLensError, match="already holds a run"):
        demo(config)
    # stopped before the end, it goes on with the heads that are trained
    (config.out / "metrics.json").unlink()
    (config.out / "explore" / "explore.html").unlink()
    resumed = demo(replace(config, resume=True))
    assert resumed.results == returned.results
    assert len((config.out / "log.jsonl").read_text().splitlines()) == len(KEYS)
    assert {path.name for path in (config.out / "heads").iterdir()} == KEYS
    assert (config.out / "explore" / "explore.html").exists()


def test_a_backbone_that_lacks_a_part_is_refused_first(image_tree: Path, tmp_path: Path) -> None:
    student = families.write_student(tmp_path / "student")
    dit = families.write_dit(tmp_path / "dit")
    for backbone, message in ((student, "does not generate"), (dit, "needs a decoder, and .*dit has none")):
        config = DemoConfig(out=tmp_path / "demo", data=str(image_tree), backbone=str(backbone), device="cpu")
        with pytest.raises(DiffLensError, match=message):
            demo(config)
        assert not config.out.exists()


def test_the_report_names_the_sampler_of_the_backbone(image_tree: Path, tmp_path: Path) -> None:
    config = DemoConfig(
        out=tmp_path / "demo",
        data=str(image_tree),
        backbone=str(families.write_flow(tmp_path / "flow")),
        effort=1e-3,
        samples=2,
        sampling_steps=2,
        device="cpu",
    )
    demo(config)
    assert "Sampler: own, steps: 2." in (config.out / "report.html").read_text()


def test_the_model_card_states_the_distance(tmp_path: Path) -> None:
    assert card_fact("fashion", "images") == (
        "the 60,000 training images of Fashion-MNIST (MIT licence), without labels; no test image"
    )
    (tmp_path / "README.md").write_text("| | |\n|---|---|\n| Fréchet distance | 1.5 of 10 images |\n")
    assert card_fact(str(tmp_path), "Fréchet distance") == "1.5 of 10 images"
    assert card_fact(str(tmp_path), "FID") is None
    assert card_fact("someone/somewhere", "images") is None
