"""The command line as a user meets it: exit codes, messages, formats."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflens import PredictConfig, TrainedModel, predict
from difflens.backbones.load import load_backbone
from tests.helpers.cli import run
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> tuple[Path, Path]:
    """A run directory and the images it was trained on."""
    root = tmp_path_factory.mktemp("trained")
    tree = make_image_tree(root / "images")
    code = run(
        "probe",
        "--backbone",
        backbone_folder,
        "--data",
        tree,
        "--head",
        "mlp",
        "--width",
        64,
        "--blocks",
        6,
        "--noise-steps",
        5,
        "--epochs",
        15,
        "--learning-rate",
        0.003,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        root / "run",
    )
    assert code == 0
    return root / "run", tree


def test_probe_prints_what_it_found(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "probe",
        "--backbone",
        backbone_folder,
        "--data",
        f"folder:{image_tree}",
        "--head",
        "linear",
        "--blocks",
        6,
        "--noise-steps",
        5,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    ]
    assert run(*arguments) == 0
    assert "top-1" in capsys.readouterr().out
    assert run(*arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0


def test_fidelity_and_report_of_generated_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "DIR"
    assert (
        run(
            *["generate", "--backbone", "fashion", "-n", "3", "--steps", "1", "--batch-size", "3", "--out"],
            out,
        )
        == 0
    )
    figures = ["--data", "fashion", "--features", "fashion", "--limit", "60"]
    assert run("fidelity", "--samples", out, *figures, "--out", tmp_path / "figures") == 0
    printed = capsys.readouterr().out
    assert "Features: fashion, block 18 at noise step 5, averaged over positions" in printed
    assert "test images of fashion, 60" in printed
    assert "says little of so few" in printed
    assert "FID" not in printed
    assert run("report", out, tmp_path / "figures") == 0
    assert "To 60 test images of fashion" in (out / "backbone.html").read_text()


def test_predict_as_json(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, images = trained
    assert run("predict", model / "model", images / "val", "--format", "json", "--device", "cpu") == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 15
    for answer in answers:
        assert answer["label"] == Path(answer["image"]).parent.name
        assert answer["probability"] == max(answer["probabilities"].values())
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_an_answer_does_not_depend_on_what_else_is_asked(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = trained
    one = images / "val" / "red" / "2.png"
    assert run("predict", model, images / "val", "--format", "csv") == 0
    rows = {row["image"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert run("predict", model, one, "--format", "csv") == 0
    alone = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(alone["red"]) == pytest.approx(float(rows[str(one)]["red"]), abs=1e-5)


def test_predict_as_a_table(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, images = trained
    assert run("predict", model, images / "val" / "green" / "0.png", "--top", 2, "--draws", 2) == 0
    out = capsys.readouterr().out
    assert "green" in out
    assert "%" in out


def test_predictions_stream_and_are_written(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is announced one by one is the text of the whole result, on standard output and in a file."""
    model, images = trained
    result = predict(PredictConfig(model=model, images=(images / "val",), device="cpu"))
    for form in ("json", "csv"):
        words = ["predict", model, images / "val", "--format", form, "--device", "cpu"]
        assert run(*words) == 0
        printed = capsys.readouterr().out
        text = replace(result, format=form).summary()
        assert json.loads(printed) == json.loads(text) if form == "json" else printed == text + "\n"
        out = tmp_path / f"predictions.{form}"
        assert run(*words, "--out", out) == 0
        assert out.read_text() == text + "\n"
        assert capsys.readouterr().out == f"Predictions: {out}\n"
        assert run(*words, "--out", out) == 2
        assert "exists" in capsys.readouterr().err
    assert run("predict", model, images / "val", "--out", tmp_path / "x", "--device", "cpu") == 2
    assert "add --format csv or json" in capsys.readouterr().err


def test_below_the_threshold_there_is_no_class(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = trained
    result = predict(PredictConfig(model=model, images=(images / "val",), device="cpu"))
    middle = sorted(each.probability for each in result.predictions)[7]
    words = ["predict", model, images / "val", "--threshold", middle, "--device", "cpu"]
    assert run(*words, "--format", "json") == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["label"] is None for answer in answers] == [
        answer["probability"] < middle for answer in answers
    ]
    assert sum(answer["label"] is None for answer in answers) == 7
    assert run(*words) == 0
    assert capsys.readouterr().out.count(": no class, then ") == 7


def test_predict_skips_or_stops_at_a_bad_image(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = trained
    (tmp_path / "broken.png").write_bytes(b"?")
    Image.open(images / "val" / "red" / "0.png").save(tmp_path / "good.png")
    assert run("predict", model, tmp_path, "--format", "json") == 2
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert captured.out == ""
    assert run("predict", model, tmp_path, "--format", "json", "--on-bad-image", "skip") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert "skipped 1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "NOWHERE", "x.png"], "NOWHERE"),
        (["predict", "MODEL", "missing.png"], "missing.png"),
        (["predict", "MODEL"], "no images given"),
        (["predict", "MODEL", "EMPTY"], "no images"),
        (["predict", "MODEL", "IMAGES", "--top", "0"], "--top"),
        (["probe", "--data", "nowhere", "--out", "OUT"], "nowhere"),
        (["probe", "--backbone", "nowhere", "--out", "OUT"], "nowhere"),
        (["probe", "--blocks", "99", "--out", "OUT"], "no block 99"),
        (["probe", "--noise-steps", "5000", "--out", "OUT"], "noise step 5000"),
        (["pretrain", "--data", "nowhere", "--out", "OUT"], "nowhere"),
        (
            ["pretrain", "--preset", "tiny", "--image-size", "17", "--data", "fashion", "--out", "OUT"],
            "multiple of 2",
        ),
        (["pretrain", "--preset", "tiny", "--data", "EMPTY", "--out", "OUT"], "no images in"),
        (["generate", "-n", "1", "--steps", "1001", "--out", "OUT"], "the schedule allows 1 to 1000"),
        (["fidelity", "--samples", "EMPTY", "--out", "OUT"], "no images in"),
        (["fidelity", "--samples", "MODEL", "--out", "OUT"], "but not of `difflens generate`"),
        (["report", "nowhere", "--out", "OUT"], "no backbone 'nowhere'"),
        (["report", "MODEL", "fashion", "--out", "OUT"], "are of different backbones"),
        (["demo", "--backbone", "pixels", "--out", "OUT"], "needs a diffusion backbone"),
        (["extract", "--blocks", "99", "--out", "OUT"], "no block 99"),
        (["extract", "--data", "cub:EMPTY", "--out", "OUT"], "images.txt"),
        (["sweep", "--noise-steps", "5000", "--out", "OUT"], "noise step 5000"),
        (["sweep", "--budget", "lots", "--out", "OUT"], "not 'lots'"),
        (["cka", "--limit", "10", "--out", "OUT"], "at least 80 images"),
        (["cka", "--other", "timm:nothing-like-it", "--out", "OUT"], "timm has no model"),
        (["compare", "--backbones", "fashion", "nowhere", "--out", "OUT"], "nowhere"),
        (["explain", "--run", "EMPTY", "--data", "fashion", "--out", "OUT"], "not a difflens model"),
        (
            ["probe", "--head", "diffeed", "--backbone", "random:timm:test_vit", "--out", "OUT"],
            "needs a decoder",
        ),
        (["probe", "--label-list", "nowhere.txt", "--out", "OUT"], "nowhere.txt"),
        (["probe", "--label-fraction", "0.0001", "--out", "OUT"], "leaves no image of"),
        (["probe", "--store", "EMPTY", "--out", "OUT"], "not a feature store"),
        (["probe", "--backbone", "~nosuch/net", "--out", "OUT"], "no user of this name"),
        (["probe", "--data", "folder:~nosuch/images", "--out", "OUT"], "no user of this name"),
        (["segment", "--data", "~nosuch/scenes", "--out", "OUT"], "no user of this name"),
        (["predict", "MODEL", "IMAGES", "--out", "OUT"], "add --format csv or json"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_exit_with_2_and_a_message(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"MODEL": trained[0], "IMAGES": trained[1], "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    words = [names.get(word, word.replace("EMPTY", str(names["EMPTY"]))) for word in arguments]
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_a_model_whose_backbone_is_gone_or_changed(
    trained: tuple[Path, Path], backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run_folder, images = trained
    moved, model = tmp_path / "moved", tmp_path / "model"
    shutil.copytree(backbone_folder, moved)
    shutil.copytree(run_folder / "model", model)
    config = json.loads((model / "config.json").read_text())
    config["backbone"]["spec"] = str(tmp_path / "gone")
    (model / "config.json").write_text(json.dumps(config))
    image = images / "val" / "red" / "0.png"
    assert run("predict", model, image) == 2
    assert "If it has moved, name it with --backbone" in capsys.readouterr().err
    assert run("predict", model, image, "--backbone", moved) == 0
    capsys.readouterr()
    changed = load_backbone(str(moved))
    with torch.no_grad():
        changed.unet.conv_in.weight[0] += 0.1
    changed.unet.save_pretrained(moved)
    assert run("predict", model, image, "--backbone", moved) == 2
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "other", "config", "no config"])
def test_a_damaged_model(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(trained[0] / "model", model)
    weights = model / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"x": torch.ones(1)}, weights)
    elif damage == "config":
        (model / "config.json").write_text('{"classes": []}')
    else:
        (model / "config.json").unlink()
    assert run("predict", model, trained[1]) == 2
    assert "difflens: error:" in capsys.readouterr().err


def test_a_model_is_its_own_folder(trained: tuple[Path, Path]) -> None:
    loaded = TrainedModel.load(trained[0])
    card = (trained[0] / "model" / "README.md").read_text()
    assert "| head | mlp" in card
    assert Path(loaded.backbone.spec).is_absolute()


def test_python_dash_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "difflens", "predict", "/nowhere", "x.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_scenes_segment_detect_and_predict(
    stamps: Path,
    backbone_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("scenes", "--source", stamps, "--train", 4, "--val", 2, "--size", 32, "--out", "scenes") == 0
    captured = capsys.readouterr()
    assert "train: 4 scenes" in captured.out
    assert "left out 2" in captured.err
    assert run("scenes", "--source", stamps, "--train", 4, "--val", 2, "--size", 32, "--out", "scenes") == 2
    common = (
        "--backbone",
        backbone_folder,
        "--data",
        "scenes",
        "--iterations",
        1,
        "--batch-size",
        2,
        "--width",
        16,
    )
    assert run("segment", *common, "--out", "segmented") == 0
    assert run("detect", *common, "--out", "detected") == 0
    out = capsys.readouterr().out
    for words in ("mIoU", "box AP", "mask AP", "results.json"):
        assert words in out
    image = "scenes/images/val/00000.png"
    assert run("predict", "segmented/model", image) == 0
    assert "%" in capsys.readouterr().out
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        "00000.mask.png",
        "00000.overlay.png",
        "predictions.json",
    ]
    assert run("predict", "detected", image, "--out", "found", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("found/predictions.json").read_text())
    # another model's pictures do not stay
    assert run("predict", "detected", image, "--out", "predictions") == 0
    assert sorted(path.name for path in Path("predictions").iterdir()) == [
        "00000.overlay.png",
        "predictions.json",
    ]
    assert run("predict", "segmented", "scenes/images/val/00001.png") == 0
    assert sorted(path.name for path in Path("predictions").glob("*.png")) == [
        "00001.mask.png",
        "00001.overlay.png",
    ]
    # one palette for the mask and the overlay; nothing reaches a threshold of 1
    assert run("predict", "segmented", image, "--threshold", 1, "--out", "unsure") == 0
    assert {*np.asarray(Image.open("unsure/00000.mask.png")).flat} == {255}
    assert run("predict", "detected", image, "--threshold", 1, "--out", "none") == 0
    assert json.loads(Path("none/predictions.json").read_text())[0]["objects"] == []
    capsys.readouterr()
    assert run("predict", "detected", image, "--format", "csv") == 2
    assert run("predict", "detected", image, "--out", "scenes") == 2
    assert "not a folder of predictions" in capsys.readouterr().err


def test_bad_annotations_stop_or_are_counted(
    scene_folder: Path, backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(scene_folder, tmp_path / "scenes")
    (tmp_path / "scenes" / "masks" / "train" / "00002.png").unlink()
    command = (
        "segment",
        "--backbone",
        backbone_folder,
        "--data",
        tmp_path / "scenes",
        "--iterations",
        1,
        "--head",
        "linear",
        "--out",
        tmp_path / "run",
    )
    assert run(*command) == 2
    assert "00002.png" in capsys.readouterr().err
    assert run(*command, "--on-bad-annotation", "skip") == 0
    assert "left out 1 bad annotation" in capsys.readouterr().err


@pytest.mark.parametrize("augment", ["none", "flip"], ids=["cached", "online"])
def test_no_test_image_that_can_be_read(
    backbone_folder: Path,
    image_tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    augment: str,
) -> None:
    for path in (image_tree / "val").rglob("*.png"):
        path.write_bytes(b"?")
    words = ("--backbone", backbone_folder, "--data", image_tree, "--head", "linear", "--epochs", 1)
    options = ("--augment", augment, "--on-bad-image", "skip", "--device", "cpu", "--out", tmp_path / "run")
    assert run("probe", *words, *options) == 2
    assert "no image of the val split could be read" in capsys.readouterr().err
