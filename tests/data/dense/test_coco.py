"""The COCO reader: its tensors, and its message about each kind of bad entry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from difflens import DiffLensError
from difflens.data.dense.coco import compressed, decode, load_annotations, load_coco, run_lengths

Record = dict[str, Any]


def miniature() -> Record:
    """Three images of 20 x 10, the last without objects; a polygon, run lengths of both kinds and a crowd."""
    mask = np.zeros((10, 20), bool)
    mask[2:6, 3:9] = True
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 20, "height": 10} for k in (7, 8, 9)],
        "categories": [{"id": 44, "name": "cup"}, {"id": 3, "name": "car"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [3, 2, 6, 4],
                "area": 24,
                "iscrowd": 0,
                "segmentation": run_lengths(mask),
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 44,
                "bbox": [10.5, 1, 8, 7],
                "area": 56,
                "iscrowd": 0,
                "segmentation": [[10.5, 1, 18.5, 1, 18.5, 8, 10.5, 8]],
            },
            {
                "id": 3,
                "image_id": 8,
                "category_id": 44,
                "bbox": [3, 2, 6, 4],
                "area": 24,
                "iscrowd": 0,
                "segmentation": compressed(mask),
            },
            {
                "id": 4,
                "image_id": 8,
                "category_id": 3,
                "bbox": [0, 0, 20, 10],
                "area": 200,
                "iscrowd": 1,
                "segmentation": run_lengths(np.ones((10, 20), bool)),
            },
        ],
    }


def write(root: Path, train: Record | str, val: Record | None = None) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, record in (("train", train), ("val", val or miniature())):
        (root / split).mkdir()
        for k in (7, 8, 9):
            Image.new("RGB", (20, 10), (k, k, k)).save(root / split / f"{k}.png")
        text = record if isinstance(record, str) else json.dumps(record)
        (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def test_a_miniature(tmp_path: Path) -> None:
    root = write(tmp_path / "mini", miniature())
    data = load_coco(root)
    assert data.classes == ("car", "cup")
    assert data.bad == ()
    assert len(data.train) == 3
    target = data.train.target(0, masks=True)
    assert target["boxes"].tolist() == [[3, 2, 9, 6], [10.5, 1, 18.5, 8]]
    assert target["labels"].tolist() == [1, 2]
    coco = COCO(root / "annotations" / "instances_train.json")
    for i, ids in enumerate(([1, 2], [3], [])):  # the crowd is not trained on, the negative is kept
        mine = data.train.target(i, masks=True)["masks"]
        assert mine.shape == (len(ids), 10, 20)
        for mask, identity in zip(mine, ids, strict=True):
            assert np.array_equal(mask.numpy(), coco.annToMask(coco.anns[identity]).astype(bool))
    assert [each["iscrowd"] for each in data.train.record["annotations"]] == [0, 0, 0, 1]
    assert data.train.image(0).shape == (3, 10, 20)


def test_any_folder_and_file(tmp_path: Path) -> None:
    root = write(tmp_path / "mini", miniature())
    train, val = (
        (root / split, root / "annotations" / f"instances_{split}.json") for split in ("train", "val")
    )
    assert load_annotations(train, val).fingerprint() == load_coco(root).fingerprint()
    other = miniature()
    other["annotations"][0]["bbox"] = [3, 2, 6, 3]
    changed = write(tmp_path / "other", other)
    assert load_coco(changed).fingerprint() != load_coco(root).fingerprint()


def test_boxes_alone(tmp_path: Path) -> None:
    record = miniature()
    for each in record["annotations"]:
        del each["segmentation"], each["area"]
    data = load_coco(write(tmp_path / "mini", record, record))
    assert not data.train.has_masks
    assert [each["area"] for each in data.train.record["annotations"]] == [24, 56, 24, 200]
    assert set(data.train.target(0, masks=False)) == {"boxes", "labels"}


def change(place: int, **values: object) -> Callable[[Record], None]:
    def apply(record: Record) -> None:
        record["annotations"][place] |= values

    return apply


def image(place: int, **values: object) -> Callable[[Record], None]:
    def apply(record: Record) -> None:
        record["images"][place] |= values

    return apply


@pytest.mark.parametrize(
    ("spoil", "entry", "message"),
    [
        (change(1, bbox=[15, 1, 8, 7]), "annotations[1] (id 2)", "outside its image of 20 x 10"),
        (change(1, bbox=[-5, 1, 8, 7]), "annotations[1] (id 2)", "outside its image"),
        (change(1, bbox=[5, 1, 0, 7]), "annotations[1] (id 2)", "no area"),
        (change(1, bbox=[5, 1, 7]), "annotations[1] (id 2)", "bbox is [left, top"),
        (change(1, bbox=[5, 1, float("nan"), 7]), "annotations[1] (id 2)", "bbox is [left, top"),
        (change(1, category_id=5), "annotations[1] (id 2)", "class id 5"),
        (change(1, id=1), "annotations[1] (id 1)", "earlier annotation"),
        (change(1, image_id=99), "annotations[1] (id 2)", "no usable image with id 99"),
        (
            change(1, segmentation=run_lengths(np.ones((10, 10), bool))),
            "annotations[1] (id 2)",
            "has size [10, 10]",
        ),
        (
            change(1, segmentation={"size": [10, 20], "counts": [5]}),
            "annotations[1] (id 2)",
            "cover 5 pixels of 200",
        ),
        (
            change(1, segmentation={"size": [10, 20], "counts": ["5"]}),
            "annotations[1] (id 2)",
            "whole numbers",
        ),
        (
            change(1, category_id=[1]),
            "annotations[1] (id 2)",
            "category_id is a whole number of 64 bits, not [1]",
        ),
        (change(1, image_id=[7]), "annotations[1] (id 2)", "image_id is a whole number of 64 bits, not [7]"),
        (change(1, iscrowd=None), "annotations[1] (id 2)", "iscrowd is 0 or 1"),
        (change(1, iscrowd="no"), "annotations[1] (id 2)", "iscrowd is 0 or 1"),
        (change(1, area=float("nan")), "annotations[1] (id 2)", "area is a number of pixels, not nan"),
        (change(1, area="8"), "annotations[1] (id 2)", "area is a number of pixels, not '8'"),
        (change(1, segmentation=[[1, 2, 3]]), "annotations[1] (id 2)", "at least three points"),
        (change(1, segmentation=run_lengths(np.zeros((10, 20), bool))), "annotations[1] (id 2)", "no pixels"),
        (change(1, segmentation=None), "annotation with id 2", "has no mask, and others have"),
        (image(2, id=7), "images[2] (id 7)", "earlier image"),
        (image(2, file_name="gone.png"), "images[2] (id 9)", "no such file"),
        (image(2, width=21), "images[2] (id 9)", "recorded as 21 x 10 pixels, but the file has 20 x 10"),
    ],
)
def test_a_bad_entry_is_named_or_skipped_and_counted(
    spoil: Callable[[Record], None], entry: str, message: str, tmp_path: Path
) -> None:
    record = miniature()
    spoil(record)
    root = write(tmp_path / "mini", record)
    with pytest.raises(DiffLensError) as caught:
        load_coco(root)
    text = str(caught.value)
    assert "instances_train.json" in text
    assert entry in text
    assert message in text
    data = load_coco(root, "skip")
    assert len(data.bad) == 1
    assert entry in data.bad[0]
    before, after = (
        sum(len(record[key]) for key in ("images", "annotations"))
        for record in (miniature(), data.train.record)
    )
    assert before - after == 1
    assert len(data.train) in (2, 3)


def test_all_bad_entries_are_told_at_once(tmp_path: Path) -> None:
    record = miniature()
    for each in record["annotations"]:
        each["bbox"][2] = 0
    with pytest.raises(DiffLensError, match=r"4 bad annotations: .*id 1.*id 4"):
        load_coco(write(tmp_path / "mini", record))


def test_a_box_may_leave_its_image_by_rounding(tmp_path: Path) -> None:
    record = miniature()
    record["annotations"][1]["bbox"] = [12.4, 1, 8, 7]
    data = load_coco(write(tmp_path / "mini", record))
    assert torch.allclose(data.train.target(0, masks=False)["boxes"][1], torch.tensor([12.4, 1, 20, 8]))


def test_a_missing_area_is_that_of_the_mask(tmp_path: Path) -> None:
    record = miniature()
    triangle = [[10, 1, 18, 1, 18, 8]]
    record["annotations"][1] |= {"segmentation": triangle, "area": None}
    del record["annotations"][0]["area"]
    found = load_coco(write(tmp_path / "mini", record)).train.record["annotations"]
    assert [each["area"] for each in found] == [24, decode(triangle, (10, 20)).sum(), 24, 200]
    assert found[1]["area"] < 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "broken JSON"),
        ("[]", "not in COCO's format"),
        ('{"images": [], "annotations": []}', "'categories'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\]"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "other categories"),
    ],
)
def test_a_file_that_is_not_cocos(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=message) as caught:
        load_coco(write(tmp_path / "mini", content), "skip")
    assert "instances_train.json" in str(caught.value)


def test_a_folder_that_is_not_cocos(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="no such folder"):
        load_coco(tmp_path / "nowhere")
    with pytest.raises(DiffLensError, match="instances_train"):
        load_coco(tmp_path)
