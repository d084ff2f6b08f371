"""Images with several labels, end to end: probe, resume, report, predict, export, and what refuses them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from difflens import (
    ClassPredictResult,
    DiffLensError,
    ExportConfig,
    FrozenExtractor,
    HeadConfig,
    MultiLabelProbe,
    MultiLabelSeedResult,
    PredictConfig,
    Probe,
    TrainConfig,
    export,
    fit,
    load_backbone,
    load_data,
    load_model,
    make_head,
    predict,
    probe,
)
from difflens.data.images import to_float
from difflens.models.saved import MultiLabelModel, TrainedModel
from difflens.noise import PICTURE
from tests.helpers.cli import run
from tests.helpers.html import Document
from tests.helpers.multi_label import make_bands
from tests.helpers.stopped import stop_after_two_checkpoints
from tests.tasks.classification.test_probe import config


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bands(tmp_path_factory.mktemp("several") / "bands")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, bands: Path) -> Path:
    """The run directory of an MLP that tells the bands apart."""
    out = tmp_path_factory.mktemp("trained") / "run"
    changes = {"head": "mlp", "width": 64, "pool": 0, "epochs": 40, "learning_rate": 3e-3}
    assert probe(config(out, backbone_folder, bands, **changes)).map > 0.95
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "normalise": "whiten"},
        {"head": "mlp", "width": 32, "mixup": 0.5},
        {"head": "cnn", "width": 8},
        {"head": "attention", "width": 16, "augment": "flip"},
        {"head": "difformer", "width": 16, "blocks": (5, 7), "noise_steps": (2, 9)},
        {"head": "diffeed", "width": 16},
        {"head": "mix", "width": 16, "blocks": (5, 7), "noise_steps": (2, 9)},
        {"head": "linear", "extractor": "finetuned", "from_block": 3},
        {"head": "linear", "seeds": 2, "limit": 20},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_way_to_probe(backbone_folder: Path, bands: Path, tmp_path: Path, changes: dict) -> None:
    out = tmp_path / "run"
    result = probe(config(out, backbone_folder, bands, epochs=8, learning_rate=0.01, **changes))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics()))
    seeds = metrics.get("runs", [metrics])
    assert metrics["map"] == pytest.approx(sum(seed["map"] for seed in seeds) / len(seeds))
    for seed in seeds:
        assert (seed["metric"], seed["test_images"]) == ("map", 14)
        assert 0 < seed["map_interval_95"][0] <= seed["map_interval_95"][1] <= 1
        assert "top1" not in seed
    log = out / "seed-0" / "log.jsonl" if "runs" in metrics else out / "log.jsonl"
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert losses[-1] < losses[0]
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(
        MultiLabelModel.load(out).probabilities(images), result.model.probabilities(images)
    )


def test_the_figures_are_those_of_the_predictions(trained: Path, bands: Path) -> None:
    data = load_data(str(bands))
    assert data.test.labels is not None
    with (trained / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == data.test.ids
    scores = np.array([[float(row[f"p({name})"]) for name in data.classes] for row in rows])
    metrics = json.loads((trained / "metrics.json").read_text())
    expected = average_precision_score(data.test.labels.numpy(), scores, average=None)
    assert [metrics["per_class"][name] for name in data.classes] == pytest.approx(expected.tolist())
    assert metrics["map"] == pytest.approx(expected.mean())
    assert metrics["positives"] == dict(zip(data.classes, data.test.labels.sum(0).tolist(), strict=True))
    for row, there, found in zip(rows, data.test.labels.tolist(), scores, strict=True):
        assert row["labels"] == "|".join(np.array(data.classes)[there])
        assert row["predicted"] == "|".join(np.array(data.classes)[found >= 0.5])
    assert any(row["labels"] == "" for row in rows)


def test_probabilities_are_sigmoids_also_in_a_loaded_model(trained: Path, bands: Path) -> None:
    model, data = load_model(str(trained)), load_data(str(bands))
    assert (model.task, model.classes) == ("multi-label classification", ("blue", "green", "red"))
    assert json.loads((trained / "model" / "config.json").read_text())["task"] == model.task
    pixels = torch.stack([data.test.image(k) for k in range(4)])
    found = model(pixels)
    with torch.no_grad():
        logits = model.saved.probe(to_float(pixels), torch.full((4,), PICTURE))
    torch.testing.assert_close(found, logits.sigmoid())
    assert ((found >= 0.5) == data.test.labels[:4]).float().mean() > 0.9  # type: ignore[index]
    with pytest.raises(DiffLensError, match="is a model of multi-label classification, not of class"):
        TrainedModel.load(trained)


def test_predict_names_all_classes_of_the_threshold(
    trained: Path, bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = PredictConfig(model=trained, images=bands.parent, device="cpu")
    result = predict(options)
    assert isinstance(result, ClassPredictResult)
    none = [each for each in result.records() if not each["labels"]]
    assert 0 < len(none) < len(result.records()) == 44
    for record in result.records():
        assert record["labels"] == [name for name, p in record["probabilities"].items() if p >= 0.5]
    everything = predict(replace(options, threshold=0.0)).records()  # type: ignore[attr-defined]
    assert all(len(record["labels"]) == 3 for record in everything)
    out = tmp_path / "labels.csv"
    assert run("predict", trained, bands.parent, "--format", "csv", "--out", out) == 0
    capsys.readouterr()
    rows = list(csv.DictReader(out.open(newline="")))
    assert list(rows[0]) == ["image", "labels", "blue", "green", "red"]
    assert [row["labels"].split("|") if row["labels"] else [] for row in rows] == [
        record["labels"] for record in result.records()
    ]
    assert run("predict", trained, none[0]["image"]) == 0
    assert f"{none[0]['image']}: no class, then " in capsys.readouterr().out
    assert run("predict", trained, bands.parent, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == result.records()
    assert "no class" in result.summary()


def test_onnx_gives_the_same_sigmoids(trained: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    file = tmp_path / "model.onnx"
    assert export(ExportConfig(model=trained, file=file)).difference <= 1e-4
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    assert np.abs(found - MultiLabelModel.load(trained).probabilities(images).numpy()).max() <= 1e-4


def test_the_report_has_average_precisions_and_examples(
    backbone_folder: Path, bands: Path, tmp_path: Path
) -> None:
    probe(config(tmp_path / "run", backbone_folder, bands, epochs=1))
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Probe: " in Document(text).text
    for words in (
        "mAP, %",
        "95 % interval of mAP",
        "Average precision, %",
        "Ranked wrongly",
        "Images that are ranked wrongly",
    ):
        assert words in text, words
    assert "Confusion" not in text
    assert "accuracy" not in text.lower()


@pytest.mark.parametrize("head", ["mlp", "diffeed"])
def test_resuming_ends_as_an_uninterrupted_run(
    backbone_folder: Path, bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    whole = config(tmp_path / "whole", backbone_folder, bands, head=head, width=16, epochs=4)
    expected = probe(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    stop_after_two_checkpoints(stopped, monkeypatch)
    result = probe(replace(stopped, resume=True))
    for name, value in expected.model.probe.own_state().items():
        assert torch.equal(value, result.model.probe.own_state()[name]), name
    assert result.map == expected.map
    # a finished run is not run again, and its predictions are read
    finished = probe(replace(stopped, resume=True))
    (seed,), (evaluation,) = finished.seeds, finished.evaluations
    assert isinstance(seed, MultiLabelSeedResult)
    assert seed.metrics() == result.seeds[0].metrics()
    assert torch.equal(evaluation.labels, result.evaluations[0].labels)
    torch.testing.assert_close(
        evaluation.probabilities, result.evaluations[0].probabilities, atol=1e-5, rtol=0
    )
    # a damaged line is named
    file = stopped.out / "predictions.csv"
    text = file.read_text()
    for old, new, problem in (
        ("30.png,", "x.png,", "line 2: image is 'x.png', not of this run"),
        ("30.png,", "30.png,cat|", "line 2: labels is 'cat|"),
        ("31.png,", "30.png,", "line 3: '30.png' is there twice"),
        ("p(red)", "p(cat)", "the column p(red) is missing"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(DiffLensError) as caught:
            probe(replace(stopped, resume=True))
        assert problem in str(caught.value)


def test_a_class_without_test_images_is_named_and_left_out(
    backbone_folder: Path, bands: Path, tmp_path: Path
) -> None:
    text = bands.read_text().splitlines()
    kept = [line for line in text if ",test" not in line or "red" not in line]
    (bands.parent / "some.csv").write_text("\n".join(kept) + "\n")
    result = probe(config(tmp_path / "run", backbone_folder, bands.parent / "some.csv"))
    (seed,) = result.seeds
    assert isinstance(seed, MultiLabelSeedResult)
    assert seed.per_class["red"] is None
    assert seed.map == pytest.approx(sum(filter(None, seed.per_class.values())) / 2)
    assert "without red, which no test image has" in result.summary()
    assert "No test image has: red." in (tmp_path / "run" / "report.html").read_text()


READERS = [
    ("k-NN", "probe", "--head", "knn"),
    ("--label-smoothing", "probe", "--label-smoothing", "0.1"),
    ("--label-fraction", "probe", "--label-fraction", "0.5"),
    ("--grid", "probe", "--head", "linear", "--grid"),
    ("a sweep", "sweep"),
    ("a sweep", "sweep", "--halve"),
    ("compare", "compare", "--backbones", "pixels:3x8", "pixels:3x16"),
    ("the demo", "demo"),
    ("explain", "explain"),
    ("extract without --unlabelled", "extract"),
    ("--method supervised", "pretrain", "--preset", "tiny", "--method", "supervised"),
]


@pytest.mark.parametrize(("reader", "words"), [(reader, words) for reader, *words in READERS])
def test_what_reads_one_label_refuses_several(
    reader: str, words: list[str], bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(*words, "--data", bands, "--out", out) == 2
    assert f"error: {reader} reads one label an image; {bands} has several\n" in capsys.readouterr().err
    assert not out.exists()


def test_a_store_holds_no_images_with_several_labels(
    bands: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    words = ["extract", "--backbone", "pixels:3x8", "--data", image_tree, "--limit", 6, "--out", store]
    assert run(*words, "--workers", 0, "--device", "cpu") == 0
    assert run("probe", "--store", store, "--data", bands, "--out", tmp_path / "run") == 2
    assert f"error: --store reads one label an image; {bands} has several\n" in capsys.readouterr().err


def test_a_dry_run_refuses_the_same_and_plans_the_rest(
    bands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["probe", "--data", bands, "--out", "none", "--dry-run", "--head"]
    assert run(*line, "knn") == 2
    assert "k-NN reads one label an image" in capsys.readouterr().err
    assert run(*line, "mlp") == 0
    assert not Path("none").exists()


def test_the_probe_of_a_pretraining_reads_one_label(
    bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--preset", "tiny", "--data", bands, "--probe-every", "1", "--out", tmp_path / "out"]
    assert run(*words, "--probe-data", bands) == 2
    assert f"reads one label an image; {bands} has several" in capsys.readouterr().err


def test_a_report_on_a_backbone_and_an_explanation_name_the_model(
    trained: Path, bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", trained, "--out", tmp_path / "page.html") == 2
    assert "is a model of multi-label classification, not of classification" in capsys.readouterr().err
    assert run("explain", "--run", trained, "--out", tmp_path / "explained") == 2
    assert "explain reads one label an image" in capsys.readouterr().err


def test_a_probe_in_python_is_for_its_labels(backbone_folder: Path, bands: Path, image_tree: Path) -> None:
    extractor = FrozenExtractor(load_backbone(str(backbone_folder)), blocks=(6,), noise_steps=(5,))
    one, several = load_data(str(image_tree)), load_data(str(bands))
    options = TrainConfig(epochs=1, workers=0)

    def head() -> object:
        return make_head(HeadConfig("linear"), extractor.shapes(), 3)

    fit(MultiLabelProbe(extractor, head()), several.train, options)  # type: ignore[arg-type]
    smooth = replace(options, label_smoothing=0.1)
    with pytest.raises(DiffLensError, match="label smoothing is for images with one label"):
        fit(MultiLabelProbe(extractor, head()), several.train, smooth)  # type: ignore[arg-type]
    with pytest.raises(DiffLensError, match="an image has several labels, so the probe must be a Multi"):
        fit(Probe(extractor, head()), several.train, options)  # type: ignore[arg-type]
    with pytest.raises(DiffLensError, match="an image has one label, so the probe must be a Probe"):
        fit(MultiLabelProbe(extractor, head()), one.train, options)  # type: ignore[arg-type]
