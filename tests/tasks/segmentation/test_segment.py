"""Segmentation from end to end on small scenes, and its parts against direct computations."""

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import nn

from difflens import (
    DetectConfig,
    DiffLensError,
    PredictConfig,
    SegmentationModel,
    SegmentConfig,
    detect,
    load_model,
    predict,
    presets,
    segment,
)
from difflens.backbones.pixels import PixelBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.configs.options import resolve
from difflens.data.dense.base import IGNORED
from difflens.data.dense.masks import read_mask, to_palette_image
from difflens.data.images import to_float
from difflens.extractors.base import evaluating
from difflens.heads.config import SegmentationHeadConfig
from difflens.heads.segmentation import SegmentationHead
from difflens.metrics.confusion import confusion_matrix
from difflens.metrics.segmentation import SegmentationEvaluation
from difflens.processes.schedulers import process_of
from difflens.reports import overlays
from difflens.reports.dense import segmentation_sections
from difflens.reports.overlays import legend_of, mask_overlay, with_legend
from difflens.results.dense import Example
from difflens.run import memory
from difflens.run.console import note
from difflens.tasks.classification.predict import predict_classes
from difflens.tasks.dense import EXAMPLES, make_plan, spread
from difflens.tasks.segmentation import inference
from difflens.tasks.segmentation.inference import Sliding, class_probabilities
from difflens.training.optimisers import make_schedule


def config(backbone: Path, scenes: Path, out: Path, **more: object) -> SegmentConfig:
    settings: dict[str, object] = {
        "data": scenes,
        "side": 32,
        "noise_steps": (3,),
        "iterations": 20,
        "batch_size": 4,
        "width": 16,
        "learning_rate": 3e-3,
        "scale": (0.8, 1.25),
        "workers": 0,
    }
    return SegmentConfig(backbone=str(backbone), out=out, **{**settings, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, scene_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("segment") / "run"
    segment(config(backbone_folder, scene_folder, out))
    return out


@pytest.mark.parametrize("fresh", [True, False])
def test_no_validation_image_has_the_noise_of_a_training_image(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """Fresh noise differs by its draw, and the evaluation has draw 0."""
    seen: list[int] = []

    def recorded(probe: Any, image: Any, index: int, *rest: Any) -> torch.Tensor:
        seen.append(index)
        return class_probabilities(probe, image, index, *rest)

    monkeypatch.setattr(inference, "class_probabilities", recorded)
    segment(config(backbone_folder, scene_folder, tmp_path / "run", iterations=1, fresh_noise=fresh))
    assert seen[:5] == [k if fresh else 2**30 + k for k in range(5)]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 11, 13, 500])
def test_examples_are_spread_over_the_images(count: int) -> None:
    rows = spread(count)
    assert len(rows) == min(EXAMPLES, count)
    gaps = [later - earlier for earlier, later in pairwise([*rows, count])]
    assert rows[:1] == [0][:count]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("classes", [("background", "bar", "disc"), ("sky", "bar", "disc")])
def test_mask_overlay_and_legend_have_one_palette(
    classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    legends = []

    def keep(titles: Any, rows: Any, legend: Any) -> Any:
        legends.append({name: colour for colour, name in legend})
        return examples(titles, rows, legend)

    examples = overlays.examples
    monkeypatch.setattr(overlays, "examples", keep)
    mask = torch.arange(3, dtype=torch.uint8).repeat_interleave(200).reshape(20, 30)
    grey = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    metrics = {"miou": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": 0.5, "train_seconds": 1.0}
    metrics |= {"iou": dict.fromkeys(classes, 0.5), "bad_annotations": []}
    segmentation_sections(metrics, [], [Example("a", grey, mask, mask)], classes)
    shown = np.asarray(to_palette_image(mask.numpy(), classes).convert("RGB"))
    overlay = mask_overlay(grey, mask, classes)
    overlay = np.asarray(overlay.resize((30, 20), Image.Resampling.NEAREST))
    for value, name in enumerate(classes):
        colour = shown[mask.numpy() == value]
        assert len({*map(tuple, colour.tolist())}) == 1
        if name == "background":
            assert name not in legends[0]
            assert (overlay[mask.numpy() == value] == 100).all()
        else:
            assert legends[0][name] == tuple(colour[0])
            expected = np.round(0.75 * colour.astype(float) + 0.25 * 100)
            assert np.abs(overlay[mask.numpy() == value] - expected).max() <= 1


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_everything_is_written(trained: Path, scene_folder: Path) -> None:
    found = losses(trained)
    assert len(found) == 20
    assert sum(found[-5:]) < 0.85 * sum(found[:5])
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["train_images"] == 12
    assert metrics["val_images"] == 5
    assert set(metrics["iou"]) == {"background", "bar", "disc"}
    assert metrics["pixel_accuracy"] > 0.6
    report = (trained / "report.html").read_text()
    for words in ("Segmentation: ", "Pixel accuracy", "Examples", "UPerNet on the", "difflens segment"):
        assert words in report


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    trained: Path, backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(backbone_folder, scene_folder, tmp_path / "run", checkpoint_minutes=0)
    original, steps = torch.optim.AdamW.step, 0

    def stopping(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            segment(asked)
    with pytest.raises(DiffLensError, match="--resume"):
        segment(asked)
    resumed = segment(replace(asked, resume=True))
    assert losses(tmp_path / "run") == losses(trained)
    assert resumed.metrics()["miou"] == json.loads((trained / "metrics.json").read_text())["miou"]
    assert (
        segment(replace(asked, resume=True)).metrics() == resumed.metrics()
    )  # finished: nothing more is done


def test_micro_batches_give_the_gradient_of_the_batch(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no normalisation sees the batch. One that does not divide is refused."""
    monkeypatch.setattr(nn, "BatchNorm2d", partial(nn.GroupNorm, 1))
    plain: dict[str, Any] = {
        "head": "linear",
        "width": None,
        "iterations": 4,
        "batch_size": 4,
        "scale": (1, 1),
    }
    whole = config(backbone_folder, scene_folder, tmp_path / "whole", **plain)
    parts = config(backbone_folder, scene_folder, tmp_path / "parts", **plain, accumulate=2)
    segment(whole)
    segment(parts)
    assert losses(parts.out) == pytest.approx(losses(whole.out), rel=1e-3)
    with pytest.raises(DiffLensError, match=r"batch-size 4 is not a multiple of 3: .* --accumulate, 3"):
        segment(replace(parts, out=tmp_path / "thirds", accumulate=3))


def test_a_run_goes_on_with_the_same_data_and_weights_alone(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(scene_folder, tmp_path / "scenes")
    asked = config(
        backbone_folder, tmp_path / "scenes", tmp_path / "run", head="linear", width=None, iterations=1
    )
    segment(asked)
    mask = tmp_path / "scenes" / "masks" / "train" / "00000.png"
    to_palette_image(1 - (read_mask(mask) > 0).astype(np.uint8)).save(mask)
    with pytest.raises(DiffLensError, match="data_fingerprint"):
        segment(replace(asked, resume=True))


@pytest.mark.parametrize(
    "more",
    [
        {"head": "linear", "width": None, "batch_size": 1},
        {"extractor": "feedback", "optimizer": "sgd", "lr_schedule": "step"},
        {"extractor": "finetuned", "layer_decay": 0.9, "noise_steps": (3, 9), "lr_schedule": "cosine"},
        {"mix": True, "blocks": (6, 7, 9), "noise_steps": (3, 9)},
        {"mix": True, "head": "linear", "extractor": "feedback", "blocks": (6, 7, 9), "noise_steps": (3, 9)},
        {"blocks": (7,), "eval_scales": (0.75, 1.25), "eval_flip": True, "image_fraction": 0.25},
    ],
)
def test_every_extractor_and_head(
    more: dict[str, object], backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    result = segment(config(backbone_folder, scene_folder, tmp_path / "run", iterations=2, **more))
    assert 0 <= result.metrics()["miou"] <= 1
    assert result.metrics()["train_images"] == (3 if "image_fraction" in more else 12)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    again = SegmentationModel.load(tmp_path / "run")
    with evaluating(result.model.probe):
        mine, loaded = (
            model.probe(image, torch.zeros(1, dtype=torch.long), 0, size=(32, 32))
            for model in (result.model, again)
        )
    assert torch.allclose(mine, loaded, atol=1e-6)


def test_pairs_of_folders_with_bad_masks(backbone_folder: Path, scene_folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (scene_folder / "masks" / "train").iterdir():
        if path.stem != "00003":
            Image.open(path).save(masks / path.name)
    asked = config(
        backbone_folder,
        scene_folder,
        tmp_path / "run",
        data=None,
        iterations=1,
        train=(scene_folder / "images" / "train", masks),
        val=(scene_folder / "images" / "val", scene_folder / "masks" / "val"),
        classes=scene_folder / "classes.txt",
    )
    with pytest.raises(DiffLensError, match=r"00003.png: .* has no mask of this name"):
        segment(asked)
    assert not (tmp_path / "run").exists()
    metrics = segment(replace(asked, on_bad_annotation="skip")).metrics()
    assert metrics["train_images"] == 11
    assert len(metrics["bad_annotations"]) == 1
    assert "Bad annotations" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"side": 33}, "multiple of 2"),
        ({"batch_size": 1}, "batch-size 2 or more"),
        ({"batch_size": 4, "accumulate": 4}, "batch-size 8 or more"),
        ({"preset": "paper"}, "no preset"),
        ({"data": None}, "name the data"),
        ({"blocks": (99,)}, "no block 99"),
        ({"iterations": 0}, "iterations"),
        ({"classes": Path("x")}, "--classes"),
        ({"step_at": (60_000, 80_000)}, "step-at is 60,000; it must be between 0 and 1"),
        (
            {"layer_decay": 0.9, "from_block": 3},
            "does not read options of finetuned: leave out --from-block, --layer-decay",
        ),
        ({"feedback_blocks": (7,)}, "does not read options of feedback: leave out --feedback-blocks"),
        ({"data": Path("nowhere")}, "no such folder"),
    ],
)
def test_mistakes_leave_nothing(
    more: dict[str, object], message: str, backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DiffLensError, match=message):
        segment(config(backbone_folder, scene_folder, tmp_path / "run", **more))
    assert not (tmp_path / "run").exists()


def test_miou_is_what_it_is_defined_to_be() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 4, (3, 17, 13)).astype(np.uint8)
    true[generator.random(true.shape) < 0.2] = IGNORED
    predicted = np.where(generator.random(true.shape) < 0.5, true % 4, generator.integers(0, 4, true.shape))
    counts = sum(
        (
            confusion_matrix(torch.from_numpy(p), torch.from_numpy(t), 5, IGNORED)
            for p, t in zip(predicted, true, strict=True)
        ),
        torch.zeros(5, 5, dtype=torch.long),
    )
    metrics = SegmentationEvaluation(counts, tuple("abcde")).metrics()
    seen = true != IGNORED
    expected = []
    for k in range(4):
        mine, theirs = {*np.flatnonzero(seen & (predicted == k))}, {*np.flatnonzero(seen & (true == k))}
        expected.append(len(mine & theirs) / len(mine | theirs))
        assert metrics["iou"]["abcde"[k]] == pytest.approx(expected[-1])
    assert metrics["iou"]["e"] is None  # neither there nor predicted
    assert metrics["absent_classes"] == ["e"]
    assert metrics["miou"] == pytest.approx(np.mean(expected))
    assert metrics["pixel_accuracy"] == pytest.approx((predicted == true)[seen].mean())


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(DiffLensError, match="two classes have one name"):
        SegmentationEvaluation(torch.eye(3).long(), ("a", "b", "a"))


def test_classes_that_do_not_occur_and_ignored_values_are_told(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(scene_folder, folder)
    for path in (folder / "masks" / "val").iterdir():
        pixels = read_mask(path)
        to_palette_image(np.where(pixels == 2, 0, pixels)).save(path)
    note.cache_clear()
    result = segment(config(backbone_folder, folder, tmp_path / "run", iterations=1))
    assert "classes without a pixel in the val masks: disc" in capsys.readouterr().err
    assert result.absent_classes == ("disc",)
    assert f" over {sum(v is not None for v in result.iou.values())} of 3 classes, " in result.summary()
    assert "No validation pixel: disc" in result.summary()
    assert "Classes without a validation pixel: disc." in (tmp_path / "run" / "report.html").read_text()
    asked = config(backbone_folder, folder, tmp_path / "other", iterations=1, ignore=(2, 255))
    assert set(segment(asked).iou) == {"background", "bar"}


def test_the_linear_head_is_one_convolution_on_upsampled_maps() -> None:
    torch.manual_seed(0)
    maps = {(1, 0): torch.randn(2, 3, 16, 16), (2, 0): torch.randn(2, 5, 8, 8)}
    shapes = {place: (tensor.shape[1], tensor.shape[2], tensor.shape[3]) for place, tensor in maps.items()}
    head = SegmentationHead(SegmentationHeadConfig("linear", 16, (1, 2)), shapes, 4).eval()
    layers = list(head.read.layers)
    weight = torch.cat([layer.weight for layer in layers], 1)
    stacked = torch.cat(
        [torch.nn.functional.interpolate(each, (16, 16), mode="bilinear") for each in maps.values()], 1
    )
    # fresh batch normalisation divides by sqrt(1 + eps)
    expected = torch.nn.functional.conv2d(stacked / (1 + 1e-5) ** 0.5, weight, layers[0].bias)
    assert torch.allclose(head(maps, (16, 16)), expected, atol=1e-5)


def test_an_image_whose_probabilities_do_not_fit_is_refused(trained: Path) -> None:
    probe = SegmentationModel.load(trained).probe
    image = torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 400_000, 400_000)  # takes three bytes
    with pytest.raises(DiffLensError, match=r"at 400000 x 400000 pixels takes at least .* smaller picture"):
        class_probabilities(probe, image, 0, Sliding(32))
    # a strip of few pixels is enlarged until its shorter side fills a window
    with pytest.raises(DiffLensError, match=r"at 16000000 x 1 pixels takes at least .* smaller picture"):
        class_probabilities(probe, image[:, :1, :1].expand(3, 1, 16_000_000), 0, Sliding(32))


def test_windows_cover_an_image_and_are_averaged(trained: Path) -> None:
    probe = SegmentationModel.load(trained).probe
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    with evaluating(probe):
        logits = probe(to_float(image[None]), torch.tensor([4]), 0, size=(32, 32))[0]
        found = class_probabilities(probe, image, 4, Sliding(32))
        assert torch.allclose(found, logits.softmax(0), atol=1e-6)
        # twice as wide, so that nothing is scaled: windows at 0, 16 and 32
        wide = torch.cat([image, image.flip(-1)], dim=-1)
        parts = [
            probe(to_float(wide[None, :, :, left : left + 32]), torch.tensor([4]), 0, size=(32, 32))[0]
            for left in (0, 16, 32)
        ]
        found = class_probabilities(probe, wide, 4, Sliding(32))
        assert torch.allclose(found[:, :, :16], parts[0][:, :, :16].softmax(0), atol=1e-6)
        middle = ((parts[0][:, :, 16:] + parts[1][:, :, :16]) / 2).softmax(0)
        assert torch.allclose(found[:, :, 16:32], middle, atol=1e-6)
        # other scales and mirrored images give probabilities of the same size
        found = class_probabilities(probe, wide[:, :20], 4, Sliding(32, (0.5, 1.0, 1.5), flip=True))
        assert found.shape == (3, 20, 64)
        assert torch.allclose(found.sum(0), torch.ones(20, 64), atol=1e-5)


def test_a_model_reads_pictures_as_those_it_was_trained_on(
    trained: Path, backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    ignoring = tmp_path / "ignoring"
    segment(config(backbone_folder, scene_folder, ignoring, iterations=2, exif="ignore"))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20), "red").save(photo, exif=turned)
    for run, size in ((trained, (20, 30)), (ignoring, (30, 20))):
        (found,) = predict(PredictConfig(model=run, images=(photo,), out=run / "predicted")).predictions
        assert (found.width, found.height) == size
        assert load_model(run)(photo)[0].shape == size[::-1]


def test_prediction_writes_overlays_masks_and_json(trained: Path, scene_folder: Path, tmp_path: Path) -> None:
    images = scene_folder / "images" / "val"
    out = tmp_path / "found"
    records = predict(PredictConfig(model=trained / "model", images=(images,), out=out)).records()
    assert json.loads((out / "predictions.json").read_text()) == records
    assert [Path(record["image"]).name for record in records] == [f"{k:05d}.png" for k in range(5)]
    for record in records:
        mask = np.asarray(Image.open(out / record["mask"]))
        assert mask.shape == (record["height"], record["width"]) == (32, 32)
        counts = dict(
            zip(
                ("background", "bar", "disc"), np.bincount(mask.ravel(), minlength=3) / mask.size, strict=True
            )
        )
        assert record["classes"] == pytest.approx(
            {name: share for name, share in counts.items() if share}, abs=1e-6
        )
        named = set(record["classes"]) - {"background"}
        width, height = Image.open(out / record["overlay"]).size
        assert (width, height > 320) == (320, bool(named))  # the legend is beneath
        (loaded,) = load_model(trained)(record["image"])
        assert np.array_equal(loaded.numpy(), mask)
    alone = predict(PredictConfig(model=trained, images=(images / "00002.png",), out=tmp_path / "one"))
    assert alone.predictions[0].classes == records[2]["classes"]  # the same noise, whatever else is asked
    # the folder of the photographs holds the predictions, which are not read
    inside = tmp_path / "photos"
    shutil.copytree(images, inside)
    for _ in range(3):
        asked = PredictConfig(model=trained, images=(inside,), out=inside / "predictions")
        assert len(predict(asked).records()) == 5
    with pytest.raises(DiffLensError, match="no images but those that an earlier prediction wrote"):
        predict(replace(asked, images=(inside / "predictions",)))
    # again into the same folder; a folder of something else is left alone
    predict(PredictConfig(model=trained, images=(images / "00000.png",), out=out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(DiffLensError, match="not a folder of predictions"):
        predict(PredictConfig(model=trained, images=(images,), out=tmp_path / "mine"))
    with pytest.raises(DiffLensError, match="a model of segmentation"):
        predict_classes(PredictConfig(model=trained, images=(images,)))


def test_a_predicted_mask_has_the_values_of_the_training_masks(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    """Values 2, 4 and 6 for the three classes; 0 is ignored, as in ADE20K."""
    folder, out = tmp_path / "scenes", tmp_path / "found"
    shutil.copytree(scene_folder, folder)
    for path in (folder / "masks").glob("*/*"):
        Image.fromarray(2 * read_mask(path) + 2).save(path)
    names = ("void", "a", "background", "b", "bar", "c", "disc")
    (folder / "classes.txt").write_text("\n".join(names))
    run = tmp_path / "run"
    result = segment(config(backbone_folder, folder, run, ignore=(0, 1, 3, 5)))
    assert result.model.mask_values == (2, 4, 6)
    asked = PredictConfig(model=run, images=(folder / "images" / "val" / "00000.png",), out=out)
    (record,) = predict(asked).records()
    written, (numbers,) = Image.open(out / record["mask"]), load_model(run)(record["image"])
    assert np.array_equal(np.asarray(written), 2 * numbers.numpy() + 2)
    assert record["values"] == {str(k): names[k] for k in np.unique(np.asarray(written))}
    # the colours are those of overlays
    plain = to_palette_image(numbers.numpy(), result.model.classes)
    assert np.array_equal(np.asarray(written.convert("RGB")), np.asarray(plain.convert("RGB")))
    # a pixel of no class keeps its value
    sure = replace(asked, threshold=1.0)
    assert {*np.unique(read_mask(out / predict(sure).records()[0]["mask"]))} <= {2, 4, 6, IGNORED}
    # a model of an earlier version says nothing of values
    description = run / "model" / "config.json"
    stored = json.loads(description.read_text())
    assert stored["info"].pop("mask_values") == [2, 4, 6]
    description.write_text(json.dumps(stored))
    assert np.array_equal(read_mask(out / predict(asked).records()[0]["mask"]), numbers.numpy())
    stored["info"]["mask_values"] = [2, 4]
    description.write_text(json.dumps(stored))
    with pytest.raises(DiffLensError, match=r"mask_values is .*; it must have one value, 0 to 254, a class"):
        predict(asked)


def test_the_legend_of_an_overlay_has_as_many_rows_as_its_names_need() -> None:
    classes = ("background", *(f"class number {k}" for k in range(1, 9)))
    picture = Image.new("RGB", (320, 100), "#010203")
    assert with_legend(picture, legend_of([0, IGNORED], classes)) is picture
    heights = []
    for count in (2, 3, 9):
        legend = legend_of(range(count), classes)
        drawn = with_legend(picture, legend)
        heights.append(drawn.height)
        pixels = np.asarray(drawn).reshape(-1, 3)
        assert all((pixels == colour).all(1).sum() == 13 * 13 for colour, _ in legend)
    assert heights == [125, 125, 182]


def test_a_first_class_that_is_no_background_is_painted() -> None:
    image = torch.full((3, 400, 400), 100, dtype=torch.uint8)
    mask = torch.zeros(400, 400, dtype=torch.uint8)
    mask[:, 200:] = IGNORED
    wall, background = (
        np.asarray(mask_overlay(image, mask, (first, "chair"))) for first in ("wall", "background")
    )
    assert (background == 100).all()
    assert (wall[:, :200] != 100).any(-1).all()
    assert (wall[:, 200:] == 100).all()


def test_a_picture_that_is_too_large_is_refused_before_any_file_is_written(
    trained: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = scene_folder / "images" / "val" / "00000.png"
    Image.new("L", (1600, 1200)).save(tmp_path / "large.png")
    # more than the probabilities at 32 x 32 pixels take, less than those at 1600 x 1200
    free = SimpleNamespace(available=2 * 10**7)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free)
    asked = PredictConfig(
        model=trained, images=(small, tmp_path / "large.png"), out=tmp_path / "out", device="cpu"
    )
    with pytest.raises(DiffLensError, match="classes at 1600 x 1200 pixels takes at least"):
        predict(asked)
    assert not (tmp_path / "out").exists()


def test_a_validation_image_that_is_too_large_is_refused_before_the_training(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(scene_folder, folder)
    Image.new("RGB", (6000, 5000)).save(folder / "images" / "val" / "00003.png")
    to_palette_image(np.zeros((5000, 6000), np.uint8)).save(folder / "masks" / "val" / "00003.png")
    # the probabilities of three classes take 360 million bytes
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * 10**8))
    with pytest.raises(DiffLensError, match=r"3 classes at 6000 x 5000 pixels takes at least 0\.4 GB"):
        segment(config(backbone_folder, folder, tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_prediction_skips_or_stops_at_a_bad_image(trained: Path, scene_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"?")
    Image.open(scene_folder / "images" / "val" / "00000.png").convert("L").save(
        tmp_path / "images" / "grey.png"
    )
    asked = PredictConfig(model=trained, images=(tmp_path / "images",), out=tmp_path / "out")
    with pytest.raises(DiffLensError, match=r"broken\.png"):
        predict(asked)
    assert not (tmp_path / "out").exists()
    result = predict(replace(asked, on_bad_image="skip"))
    assert len(result.predictions) == 1
    assert len(result.skipped_images) == 1


@pytest.mark.parametrize(
    ("kind", "preset"),
    [(SegmentConfig, name) for name in presets.SEGMENT] + [(DetectConfig, name) for name in presets.DETECT],
)
def test_every_preset_fits_the_papers_network(kind: Any, preset: str) -> None:
    narrow = UNet2DModel(
        sample_size=256,
        layers_per_block=2,
        norm_num_groups=4,
        block_out_channels=(4,) * 6,
        down_block_types=("DownBlock2D",) * 6,
        up_block_types=("UpBlock2D",) * 6,
        attention_head_dim=4,
    )
    asked = resolve(kind(out=Path("x"), data=Path("y"), preset=preset))
    plan = make_plan(asked, UNetBackbone(narrow, process_of()))
    assert set(plan.extractor.blocks) <= {24, 27, 30, 33}
    assert plan.extractor.noise_steps == (90,)
    assert plan.strides == (2, 4, 8, 16)
    assert plan.side == 512
    assert asked.iterations == (16_000 if kind is SegmentConfig else 90_000)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("poly", {0: 0.1, 9: 1.0, 50: 0.5**0.9, 99: 0.01**0.9}),
        ("step", {10: 1.0, 66: 1.0, 67: 0.1, 88: 0.1, 89: 0.01}),
        ("cosine", {50: 0.5, 10: 0.5 * (1 + math.cos(0.1 * math.pi))}),
        ("constant", {4: 0.5, 99: 1.0}),
    ],
)
def test_learning_rates(schedule: Any, expected: dict[int, float]) -> None:
    asked = SegmentConfig(
        out=Path("x"), data=Path("y"), iterations=100, lr_schedule=schedule, warmup_steps=10
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = make_schedule(
        optimizer, schedule, 100, asked.warmup_steps, asked.step_at, decay_in_warmup=True
    ).lr_lambdas
    assert {at: factor(at) for at in expected} == pytest.approx(expected)


def test_a_network_of_one_size_says_so() -> None:
    class Fixed(PixelBackbone):
        def features(self, x_t: torch.Tensor, *rest: Any, **more: Any) -> dict[int, torch.Tensor]:
            assert x_t.shape[-1] == 32, "made for 32 pixels"
            return super().features(x_t, *rest, **more)

    asked = resolve(SegmentConfig(out=Path("x"), data=Path("y")))
    assert make_plan(asked, Fixed()).side == 32
    with pytest.raises(
        DiffLensError, match=r"does not take images of side 48 \(made for 32 pixels\): leave --side at 32"
    ):
        make_plan(replace(asked, side=48), Fixed())


def test_without_the_dense_extra(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.upernet.decoder", None)
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    for run in (
        lambda: segment(config(backbone_folder, scene_folder, tmp_path / "run")),
        lambda: detect(DetectConfig(backbone=str(backbone_folder), data=scene_folder, out=tmp_path / "run")),
    ):
        with pytest.raises(DiffLensError, match=r"difflens\[dense\]"):
            run()
    assert not (tmp_path / "run").exists()
