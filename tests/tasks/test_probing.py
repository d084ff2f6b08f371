"""Probing end to end at a small size: every head, cached and online, resume, bad input."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy

from difflens import DiffLensError, ProbeConfig, TrainedModel, load_data, presets, probe
from difflens.runs import RunDirectory
from difflens.tasks import probing
from difflens.tasks.evaluation import Evaluation, paired_difference, wilson


def config(out: Path, folder: Path, images: Path, /, **changes: object) -> ProbeConfig:
    base = ProbeConfig(
        out=out, backbone=str(folder), data=str(images), head="linear", blocks=(6,), noise_steps=(5,), epochs=3,
        batch_size=8, device="cpu", workers=0,
    )  # fmt: skip
    return replace(base, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "learning_rate": 0.03, "epochs": 8},
        {"head": "mlp", "width": 32},
        {"head": "cnn", "width": 8},
        {"head": "attention", "width": 16},
        {"head": "difformer", "width": 16, "blocks": (5, 7), "noise_steps": (2, 9)},
        {"head": "diffeed", "width": 16},
        {"head": "attention", "width": 16, "augment": "crop"},
        {"head": "linear", "extractor": "finetuned", "from_block": 3, "learning_rate": 0.01},
        {"head": "linear", "optimizer": "sgd", "lr_schedule": "step", "step_epochs": 2, "learning_rate": 0.1},
        {"head": "linear", "precision": "bfloat16"},
        {"head": "linear", "cache_gigabytes": 0.0, "learning_rate": 0.03},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_way_to_probe(backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict) -> None:
    out = tmp_path / "run"
    result = probe(config(out, backbone_folder, image_tree, **changes))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert metrics["test_images"] == 15
    assert metrics["trainable_parameters"] == result.model.probe.trainable_parameters
    assert sum(map(sum, metrics["confusion_matrix"])) == 15
    assert set(metrics["per_class"]) == {"red", "green", "blue"}
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(losses) == result_epochs(changes)
    assert losses[-1] < losses[0]
    assert not (out / "cache").exists()
    again = TrainedModel.load(out)
    assert again.classes == ("blue", "green", "red")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    if changes.get("precision") is None:
        torch.testing.assert_close(again.probabilities(images), result.model.probabilities(images))


def result_epochs(changes: dict) -> int:
    return changes.get("epochs", 3)


def test_colours_are_learnt(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    result = probe(
        config(
            tmp_path / "run", backbone_folder, image_tree, head="mlp", width=64, epochs=15, learning_rate=3e-3
        )
    )
    assert result.metrics["top1"] == 1.0
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    assert len(rows) == 15
    assert all(row["class"] == row["predicted"] for row in rows)
    assert rows[0]["image"] == "val/blue/0.png"


@pytest.mark.parametrize("head", ["mlp", "diffeed"])
def test_resuming_ends_as_an_uninterrupted_run(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    whole = config(
        tmp_path / "whole", backbone_folder, image_tree, head=head, width=16, augment="flip", dropout=0.3
    )
    expected = probe(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    save, saved = RunDirectory.save_checkpoint, []

    def stop_after_two(self: object, state: dict) -> None:
        save(self, state)
        saved.append(state["epoch"])
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        probe(stopped)
    monkeypatch.undo()
    assert not (stopped.out / "metrics.json").exists()
    result = probe(replace(stopped, resume=True))
    for name, value in expected.model.probe.own_state().items():
        assert torch.equal(value, result.model.probe.own_state()[name]), name
    for metrics in (expected.metrics, result.metrics):
        del metrics["train_seconds"]
    assert result.metrics == expected.metrics
    assert (stopped.out / "log.jsonl").read_text() == (whole.out / "log.jsonl").read_text()
    # a finished run is not run again
    finished = probe(replace(stopped, resume=True)).metrics
    del finished["train_seconds"]
    assert finished == expected.metrics


def test_the_same_seed_gives_the_same_model_and_another_another(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    states = [
        probe(config(tmp_path / str(i), backbone_folder, image_tree, seed=seed)).model.probe.own_state()
        for i, seed in enumerate((0, 0, 1))
    ]
    weights = [state["head.classifier.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_cache_gives_what_reading_the_images_gives(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the cache's float16."""
    changes = {"fresh_noise": False, "epochs": 1}
    cached = probe(
        config(tmp_path / "cached", backbone_folder, image_tree, **changes)
    ).model.probe.own_state()
    monkeypatch.setattr(probing._Run, "_read", lambda *_: None)
    online = probe(
        config(tmp_path / "online", backbone_folder, image_tree, **changes)
    ).model.probe.own_state()
    for name, value in cached.items():
        torch.testing.assert_close(value, online[name], atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("head", ["linear", "diffeed"])
def test_bad_images_can_be_skipped_and_are_listed(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, head: str
) -> None:
    (image_tree / "train" / "red" / "3.png").write_bytes(b"not an image")
    truncated = image_tree / "val" / "blue" / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    run = config(tmp_path / "run", backbone_folder, image_tree, head=head, width=16)
    with pytest.raises(DiffLensError, match=r"train/red/3\.png"):
        probe(run)
    assert not run.out.exists()
    metrics = probe(replace(run, on_bad_image="skip")).metrics
    assert metrics["test_images"] == 14
    assert sorted(line.split(":")[0] for line in metrics["skipped_images"]) == [
        "train/red/3.png",
        "val/blue/1.png",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (12,)}, "no block 12: the backbone has 9 blocks: encoder 1-4, middle 5, decoder 6-9"),
        ({"noise_steps": (100,)}, "noise step 100 is outside the schedule"),
        ({"head": "attention", "blocks": (5, 6)}, "reads one map, not 2"),
        ({"head": "diffeed", "extractor": "frozen"}, "on the feedback extractor, not on frozen"),
        ({"head": "diffeed", "feedback_blocks": (2,)}, "only decoder blocks"),
        ({"extractor": "finetuned", "precision": "bfloat16"}, "keeps float32 weights"),
        ({"extractor": "finetuned", "from_block": 8}, "nothing to fine-tune: block 8 comes after block 6"),
        ({"head": "diffeed", "blocks": (1,), "feedback_blocks": (6,)}, "block 1 comes before block 4"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": -3}, "batch-size is -3"),
        ({"learning_rate": -1.0}, "learning-rate is -1"),
        ({"label_smoothing": 3.0}, "label-smoothing is 3; it must be between 0 and 1"),
        ({"dropout": 2.0}, "dropout is 2"),
        ({"limit": 0}, "limit is 0"),
        ({"preset": "paper-attention"}, "is for the head attention, not linear"),
        ({"preset": "paper-nothing"}, "no preset 'paper-nothing'; there are paper-linear"),
        ({"learning_rate": 1e12, "optimizer": "sgd"}, "no longer finite in epoch"),
        ({"backbone": "nothing"}, "no backbone 'nothing'"),
        ({"data": "/nothing"}, "/nothing"),
        ({"width": 50, "head": "attention"}, "not a multiple of its 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_says_so_and_leaves_nothing(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        probe(config(tmp_path / "run", backbone_folder, image_tree, **changes))
    if "learning_rate" not in changes:
        assert not (tmp_path / "run").exists()


def test_grey_backbone_on_colour_images_of_another_size(image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", Path("fashion"), image_tree, blocks=(13,), epochs=1)
    assert probe(run).metrics["test_images"] == 15


def test_colour_backbone_on_grey_images(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    for path in image_tree.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    run = config(tmp_path / "run", backbone_folder, image_tree, epochs=1)
    assert math.isfinite(probe(run).metrics["top1"])


@pytest.mark.parametrize("name", ["linear", "attention", "difformer", "diffeed"])
def test_the_papers_recipes(tmp_path: Path, name: str) -> None:
    resolved = ProbeConfig(out=tmp_path, preset=f"paper-{name}").resolved()
    assert (resolved.optimizer, resolved.weight_decay, resolved.epochs) == ("sgd", 0.0, 28)
    assert (resolved.lr_schedule, resolved.step_epochs, resolved.augment) == ("step", 7, "crop")
    assert resolved.head == name
    assert resolved.learning_rate == (5e-2 if name in ("attention", "difformer") else 1e-2)
    explicit = ProbeConfig(out=tmp_path, preset=f"paper-{name}", epochs=2, blocks=(5,)).resolved()
    assert (explicit.epochs, explicit.blocks) == (2, (5,))


def test_every_recipe_names_existing_fields() -> None:
    fields = set(ProbeConfig.__dataclass_fields__)
    for recipe in [*presets.PROBE.values(), *presets.HEADS.values()]:
        assert set(recipe) <= fields


def test_metrics_against_torchmetrics() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 8), torch.randint(0, 8, (200,))
    ranked = logits.topk(5).indices
    evaluation = Evaluation(torch.arange(200), labels, ranked, torch.rand(200), tuple("abcdefgh"))
    assert evaluation.top1 == pytest.approx(float(multiclass_accuracy(logits, labels, 8, average="micro")))
    assert evaluation.top5 == pytest.approx(
        float(multiclass_accuracy(logits, labels, 8, average="micro", top_k=5))
    )
    per_class = multiclass_accuracy(logits, labels, 8, average=None).tolist()
    assert list(evaluation.per_class.values()) == pytest.approx(per_class)
    assert evaluation.metrics()["mean_per_class"] == pytest.approx(sum(per_class) / 8)


def test_wilson_interval() -> None:
    low, high = wilson(81, 263)  # worked example in Newcombe (1998), method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_paired_difference_counts_disagreements_only() -> None:
    labels = torch.zeros(100, dtype=torch.long)

    def evaluation(right: int) -> Evaluation:
        ranked = (torch.arange(100) >= right).long()[:, None]
        return Evaluation(torch.arange(100), labels, ranked, torch.ones(100), ("a", "b"))

    assert paired_difference(evaluation(90), evaluation(90)) == (0.0, 0.0)
    difference, half = paired_difference(evaluation(90), evaluation(80))
    assert difference == pytest.approx(0.1)
    assert half == pytest.approx(1.96 * (0.1 * 0.9 / 99) ** 0.5, rel=1e-3)


def test_bundled_data_by_default() -> None:
    resolved = ProbeConfig(out=Path("x")).resolved()
    assert (resolved.backbone, resolved.data, resolved.head) == ("fashion", "fashion", "attention")
    assert len(load_data(resolved.data).classes) == 10
