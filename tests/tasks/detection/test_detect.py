"""Detection from end to end on small scenes, and average precision against COCO's own tool."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from difflens import (
    DetectConfig,
    DetectionModel,
    DiffLensError,
    PredictConfig,
    ScenesConfig,
    detect,
    load_model,
    predict,
    scenes,
)
from difflens.data.dense.base import Objects
from difflens.data.dense.coco import load_coco
from difflens.data.dense.run_lengths import compressed
from difflens.heads.detection import _regions
from difflens.metrics.detection import coco_metrics
from difflens.reports.overlays import object_overlay
from difflens.tasks.detection.detect import sure
from difflens.tasks.detection.inference import coco_results, detect_objects


def config(backbone: Path, folder: Path, out: Path, **more: object) -> DetectConfig:
    settings: dict[str, object] = {
        "data": folder,
        "side": 32,
        "noise_steps": (3,),
        "iterations": 24,
        "batch_size": 4,
        "width": 16,
        "learning_rate": 2e-3,
        "scale": (1.0, 1.0),
        "proposals": 16,
        "workers": 0,
    }
    return DetectConfig(backbone=str(backbone), out=out, **{**settings, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, scene_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("detect") / "run"
    detect(config(backbone_folder, scene_folder, out))
    return out


@pytest.mark.parametrize(
    ("scores", "shown"), [([0.9, 0.1, 0.6], [0.9, 0.6]), ([0.1, 0.3, 0.2], [0.3]), ([], [])]
)
def test_pictures_show_sure_objects_or_else_the_best(scores: list[float], shown: list[float]) -> None:
    count = len(scores)
    found = sure(Objects(torch.rand(count, 4), torch.ones(count, dtype=torch.long), torch.tensor(scores)))
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx(shown)
    assert len(found.boxes) == len(shown)


def test_colours_of_many_classes_repeat() -> None:
    found = Objects(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([300]), torch.ones(1))
    names = [f"class {k}" for k in range(400)]
    assert object_overlay(torch.zeros(3, 20, 20, dtype=torch.uint8), found, names).size == (320, 320)


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_everything_is_written(trained: Path, scene_folder: Path) -> None:
    found = [line["loss"] for line in log(trained)]
    assert sum(found[-8:]) < 0.8 * sum(found[:8])
    assert {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"} <= {*log(trained)[0]}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["train_images"] == 12
    for kind in ("box", "mask"):
        assert 0 <= metrics[f"{kind}_ap"] <= metrics[f"{kind}_ap50"] <= 1
        assert {*metrics[f"{kind}_ap_by_class"]} == {"bar", "disc"}
    report = (trained / "report.html").read_text()
    for words in (
        "Detection: mask AP",
        "AP of small objects",
        "Examples",
        "Mask R-CNN on the",
        "difflens detect",
    ):
        assert words in report
    truth = COCO(scene_folder / "annotations" / "instances_val.json")
    results = json.loads((trained / "results.json").read_text())
    assert {each["image_id"] for each in results} <= {*truth.imgs}
    if results:  # COCO's own tool reads them
        assert len(truth.loadRes(results).anns) == len(results)


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    trained: Path, backbone_folder: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(backbone_folder, scene_folder, tmp_path / "run", checkpoint_minutes=0)
    original, steps = torch.optim.AdamW.step, 0

    def stopping(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 15:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            detect(asked)
    detect(replace(asked, resume=True))
    assert log(tmp_path / "run") == log(trained)
    assert (tmp_path / "run" / "results.json").read_text() == (trained / "results.json").read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"head": "faster-rcnn", "extractor": "feedback"},
        {"mix": True, "blocks": (6, 7, 9), "noise_steps": (3, 9)},
        {"extractor": "finetuned", "noise_steps": (3, 9), "optimizer": "sgd", "image_fraction": 0.5},
    ],
)
def test_every_extractor_and_head(
    more: dict[str, object], backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    result = detect(config(backbone_folder, scene_folder, tmp_path / "run", iterations=2, **more))
    assert ("mask_ap" in result.metrics()) == ("head" not in more)
    image = torch.randint(0, 256, (3, 20, 50), dtype=torch.uint8)
    both = [result.model.probe.eval(), DetectionModel.load(tmp_path / "run").probe]
    for one in both:
        one.head.roi_heads.score_thresh = 0.0  # type: ignore[union-attr]
    mine, loaded = (detect_objects(probe, [image], torch.zeros(1, dtype=torch.long), 32)[0] for probe in both)
    assert len(mine.boxes) > 0
    assert torch.allclose(mine.boxes, loaded.boxes, atol=1e-4)
    assert (mine.boxes[:, 2] <= 50).all()
    assert (mine.boxes[:, 3] <= 20).all()
    if mine.masks is not None:
        assert mine.masks.shape[1:] == (20, 50)


def test_boxes_alone_are_learnt_by_faster_rcnn(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    pairs = []
    for split in ("train", "val"):
        record = json.loads((scene_folder / "annotations" / f"instances_{split}.json").read_text())
        for each in record["annotations"]:
            del each["segmentation"]
        record["annotations"] = record["annotations"][
            1:
        ]  # the first image becomes a negative, or loses an object
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(record))
        pairs.append((scene_folder / "images" / split, path))
    asked = config(
        backbone_folder, scene_folder, tmp_path / "run", data=None, train=pairs[0], val=pairs[1], iterations=1
    )
    with pytest.raises(DiffLensError, match="take --head faster-rcnn"):
        detect(replace(asked, head="mask-rcnn"))
    result = detect(asked)
    assert result.model.head.name == "faster-rcnn"
    assert "mask_ap" not in result.metrics()


def test_scenes_without_objects(backbone_folder: Path, scene_folder: Path, tmp_path: Path) -> None:
    record = json.loads((scene_folder / "annotations" / "instances_train.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**record, "annotations": []}))
    pair = (scene_folder / "images" / "train", tmp_path / "empty.json")
    asked = config(backbone_folder, scene_folder, tmp_path / "run", data=None, train=pair, val=pair)
    with pytest.raises(DiffLensError, match=r"train images of .* show no objects"):
        detect(asked)


def test_bad_annotations_are_counted(backbone_folder: Path, scene_folder: Path, tmp_path: Path) -> None:
    record = json.loads((scene_folder / "annotations" / "instances_train.json").read_text())
    first = [each for each in record["annotations"] if each["image_id"] == 1]
    for each in first:
        each["bbox"][2] = 0
    path = tmp_path / "train.json"
    path.write_text(json.dumps(record))
    asked = config(
        backbone_folder,
        scene_folder,
        tmp_path / "run",
        data=None,
        iterations=1,
        train=(scene_folder / "images" / "train", path),
        val=(scene_folder / "images" / "val", scene_folder / "annotations" / "instances_val.json"),
    )
    with pytest.raises(DiffLensError, match=r"train.json, annotations\[0\] \(id 1\): the box .* has no area"):
        detect(asked)
    assert not (tmp_path / "run").exists()
    metrics = detect(replace(asked, on_bad_annotation="skip")).metrics()
    assert len(metrics["bad_annotations"]) == len(first)
    assert metrics["train_negatives"] == 1
    assert metrics["train_images"] == 12


def fixture() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A truth of discs and slanted bars of all sizes in 12 images, one of them empty, with crowds; and
    results near."""
    generator = np.random.default_rng(5)
    rows, columns = np.mgrid[:240, :320]

    def shape(x: float, y: float, radius: float, thinner: float) -> tuple[list[float], np.ndarray]:  # type: ignore[type-arg]
        along, across = columns - x + rows - y, columns - x - (rows - y)
        mask = (along**2 + (thinner * across) ** 2) / 2 <= radius**2
        place = np.nonzero(mask)
        top, left, bottom, right = place[0].min(), place[1].min(), place[0].max() + 1, place[1].max() + 1
        return [float(left), float(top), float(right - left), float(bottom - top)], mask

    images = [{"id": 10 * k, "file_name": f"{k}.png", "width": 320, "height": 240} for k in range(12)]
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images[:-1]:
        for _ in range(generator.integers(1, 7)):
            x, y, radius = (
                generator.uniform(10, 310),
                generator.uniform(10, 230),
                generator.choice([6, 12, 30, 70]),
            )
            thinner = generator.choice([1, 4])
            box, mask = shape(x, y, radius, thinner)
            category = int(generator.integers(1, 4))
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": int(generator.random() < 0.15),
                    "segmentation": compressed(mask),
                }
            )
            for _ in range(generator.integers(0, 3)):  # missed, found, or found twice
                shift, grown = generator.normal(0, 0.12 * radius, 2), radius * generator.uniform(0.8, 1.2)
                box, mask = shape(x + shift[0], y + shift[1], grown, thinner)
                found = category if generator.random() < 0.85 else int(generator.integers(1, 4))
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": found,
                        "bbox": box,
                        "score": float(generator.random()),
                        "segmentation": compressed(mask),
                    }
                )
    categories = [{"id": k, "name": name} for k, name in ((1, "a"), (2, "b"), (3, "c"), (4, "unseen"))]
    return {"images": images, "annotations": truth, "categories": categories}, results


def test_average_precision_is_cocos(tmp_path: Path) -> None:
    truth, results = fixture()
    # ids may begin at 0, which their tools take for no match
    from_zero = [{**each, "id": each["id"] - 1} for each in truth["annotations"]]
    mine = coco_metrics({**truth, "annotations": from_zero}, results, masks=True)
    (tmp_path / "truth.json").write_text(json.dumps({**truth, "info": {}}))
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(tmp_path / "truth.json")
            # as usual, masks are judged without their boxes
            unseen = "bbox" if kind == "segm" else "segmentation"
            found = [{key: value for key, value in each.items() if key != unseen} for each in results]
            theirs = COCOeval(coco, coco.loadRes(found), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        keys = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}
        for key, place in keys.items():
            assert mine[f"{name}_{key}"] == pytest.approx(theirs.stats[place], abs=1e-9), (name, key)
        precision = theirs.eval["precision"][:, :, :, 0, -1]
        for k, category in enumerate("abc"):
            assert mine[f"{name}_ap_by_class"][category] == pytest.approx(precision[:, :, k].mean(), abs=1e-9)
        assert mine[f"{name}_ap_by_class"]["unseen"] is None
    assert 0.2 < mine["box_ap"] < 0.9


@pytest.mark.parametrize("finest", [4, 14])
def test_regions_are_read_where_their_boxes_are(finest: int) -> None:
    strides = tuple(finest * 2**k for k in range(3))
    side = 32 * strides[-1]
    # a level's cells hold where their centres are, left to right
    levels = {
        str(k): ((torch.arange(side // stride) + 0.5) * stride).expand(1, 1, side // stride, -1).contiguous()
        for k, stride in enumerate(strides)
    }
    for width in (40.0, 150.0):
        left = 0.6 * side - width / 2
        box = torch.tensor([[left, left, left + width, left + width]])
        for pool in (_regions([*levels], strides, 7), _regions([*levels], strides, 14)):
            read = pool(levels, [box], [(side, side)])
            # regions are read from the corners of cells, not their centres: half a cell, as ever in
            # torchvision
            assert any(
                float(read.mean()) == pytest.approx(0.6 * side + stride / 2, abs=1e-2) for stride in strides
            )


def test_a_side_that_the_levels_do_not_divide(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DiffLensError, match=r"no multiple of 8, .* take --side 40"):
        detect(config(backbone_folder, scene_folder, tmp_path / "run", side=38))
    assert not (tmp_path / "run").exists()


def test_nothing_found_and_nothing_to_find() -> None:
    truth, _ = fixture()
    found = coco_metrics(truth, [], masks=True)
    assert found["box_ap"] == found["mask_ap50"] == 0
    assert found["box_ap_by_class"]["unseen"] is None
    # sizes that no object has are not measured, with results or without
    truth["annotations"] = [one for one in truth["annotations"] if not one.get("iscrowd")][:1]
    found = coco_metrics(truth, [], masks=False)
    wrong = {"image_id": truth["images"][0]["id"], "category_id": truth["annotations"][0]["category_id"]}
    some = coco_metrics(truth, [{**wrong, "bbox": [0, 0, 1, 1], "score": 0.1}], masks=False)
    sizes = [f"box_ap_{size}" for size in ("small", "medium", "large")]
    assert [found[size] is None for size in sizes] == [some[size] is None for size in sizes]
    assert any(found[size] is None for size in sizes)
    with pytest.raises(DiffLensError, match="no objects"):
        coco_metrics({**truth, "annotations": []}, [], masks=True)


def test_the_truth_as_a_result_is_perfect(scene_folder: Path) -> None:
    split = load_coco(scene_folder).val
    results = []
    for row, image in enumerate(split.record()["images"]):
        target = split.target(row, masks=True)
        objects = Objects(
            target["boxes"], target["labels"], torch.ones(len(target["boxes"])), target["masks"]
        )
        results += coco_results(objects, image["id"], [1, 2])
    metrics = coco_metrics(split.record(), results, masks=True)
    assert metrics["box_ap"] == metrics["mask_ap"] == 1


def test_prediction_writes_overlays_and_json(trained: Path, scene_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    records = predict(
        PredictConfig(model=trained / "model", images=(scene_folder / "images" / "val",), out=out)
    ).records()
    assert json.loads((out / "predictions.json").read_text()) == records
    assert len(records) == 5
    for record in records:
        assert Image.open(out / record["overlay"]).size == (320, 320)
        scores = [each["score"] for each in record["objects"]]
        assert scores == sorted(scores, reverse=True)
        for each in record["objects"]:
            assert each["label"] in ("bar", "disc")
            assert len(each["bbox"]) == 4
            assert each["segmentation"]["size"] == [32, 32]
    model = load_model(trained)
    found = model([record["image"] for record in records])
    for each, record in zip(found, records, strict=True):
        assert [model.classes[k] for k in each.labels.tolist()] == [o["label"] for o in record["objects"]]
        assert [round(score, 5) for score in each.scores.tolist()] == [o["score"] for o in record["objects"]]
        corners = torch.tensor([o["bbox"] for o in record["objects"]]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        torch.testing.assert_close(each.boxes, corners, atol=2e-3, rtol=0)
        assert each.masks.shape == (len(each.scores), 32, 32)
    with pytest.raises(DiffLensError, match="draws average probabilities"):
        model(records[0]["image"], draws=2)
    with pytest.raises(DiffLensError, match="--draws"):
        predict(PredictConfig(model=trained, images=(scene_folder,), out=tmp_path / "x", draws=2))


@pytest.mark.slow
def test_eight_scenes_are_learnt_by_heart(tmp_path: Path) -> None:
    scenes(ScenesConfig(out=tmp_path / "scenes", train=8, val=1, size=64, objects=(1, 3), seed=1))
    pair = (
        tmp_path / "scenes" / "images" / "train",
        tmp_path / "scenes" / "annotations" / "instances_train.json",
    )
    metrics = detect(
        DetectConfig(
            train=pair,
            val=pair,
            out=tmp_path / "run",
            side=64,
            iterations=150,
            learning_rate=1e-3,
            lr_schedule="cosine",
            scale=(1.0, 1.0),
            augment="none",
            fresh_noise=False,
            proposals=64,
            device="cpu",
        )
    ).metrics()
    assert metrics["box_ap50"] > 0.9
    assert metrics["mask_ap50"] > 0.9
