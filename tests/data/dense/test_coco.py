"""The COCO reader: its tensors, and its message about each kind of bad entry."""

import contextlib
import json
import os
from collections.abc import Callable
from hashlib import sha256
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from difflens import DiffLensError
from difflens.data.dense.coco import load_annotations, load_coco
from difflens.data.dense.run_lengths import compressed, decode, run_lengths, runs_of
from difflens.data.split import FileSplit
from difflens.metrics.detection import coco_metrics

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
    assert [each["iscrowd"] for each in data.train.record()["annotations"]] == [0, 0, 0, 1]
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


def many(count: int, masks: bool) -> Record:
    """The images of `miniature` with `count` annotations; every fifth is a crowd."""
    shape = {"segmentation": [[3, 2, 9, 2, 9, 6, 3, 6]]} if masks else {}
    annotations = [
        {
            "id": k,
            "image_id": 7 + k % 3,
            "category_id": 3,
            "bbox": [3, 2, 6, 4],
            "iscrowd": int(k % 5 == 0),
            **shape,
        }
        for k in range(count)
    ]
    return {**miniature(), "annotations": annotations}


@pytest.mark.parametrize("masks", [False, True])
def test_an_annotation_takes_at_most_a_hundred_bytes_besides_its_mask(masks: bool, tmp_path: Path) -> None:
    table = load_coco(write(tmp_path / "mini", many(3000, masks))).train.table
    size = sum(each.nbytes for each in (table.rows, table.order, table.starts))
    assert size <= 100 * 3000
    assert len(table.masks) == 3000 * masks * len(
        compressed(decode([[3, 2, 9, 2, 9, 6, 3, 6]], (10, 20)))["counts"]
    )


def test_a_process_that_is_started_shares_the_annotations(tmp_path: Path) -> None:
    split = load_coco(write(tmp_path / "mini", many(3000, True))).train
    before = split.target(0, masks=True)
    sent = ForkingPickler.dumps(split)  # what a loader sends to a worker that it spawns
    assert len(sent) < 10_000
    assert all(each.is_shared() for each in vars(split.table).values())
    received = ForkingPickler.loads(sent)
    split.table.columns()["label"] = 2
    assert received.table.columns()["label"].tolist() == [2] * 3000
    for key, value in received.target(0, masks=True).items():
        assert torch.equal(value, before[key] if key != "labels" else torch.full_like(value, 2))


def test_the_record_is_the_file_with_compressed_masks(tmp_path: Path) -> None:
    record = miniature()
    record["annotations"].reverse()
    split = load_coco(write(tmp_path / "mini", record)).train
    found = split.record()
    assert found["images"] == record["images"]
    assert found["categories"] == sorted(record["categories"], key=lambda each: each["id"])
    for mine, theirs in zip(found["annotations"], record["annotations"], strict=True):
        assert mine == {**theirs, "segmentation": mine["segmentation"]}
        masks = [decode(each["segmentation"], (10, 20)) for each in (mine, theirs)]
        assert np.array_equal(*masks)


def test_runs_of_earlier_versions_know_the_annotations(tmp_path: Path) -> None:
    record = miniature()
    del record["annotations"][1]["area"], record["annotations"][3]["iscrowd"]
    record["annotations"][2]["note"] = "é"
    maskless = {**record["annotations"][0], "id": 9, "segmentation": None}
    record["annotations"].insert(1, maskless)
    root = write(tmp_path / "mini", record)
    split = load_coco(root, "skip").train
    # the files, then every entry that is right as Python shows it, with area and iscrowd
    digest = sha256(FileSplit("train", split.ids, root=root / "train").former_fingerprint().encode())
    right = [record["annotations"][k] for k in (0, 2, 3, 4)]
    filled = [{**right[0]}, {**right[1], "area": 56.0, "iscrowd": 0}, right[2], {**right[3], "iscrowd": 0}]
    categories = [{"id": 3, "name": "car"}, {"id": 44, "name": "cup"}]
    for entry in (*record["images"], *filled, *categories):
        digest.update(repr(entry).encode())
    assert split.former_fingerprint() == digest.hexdigest()


def test_boxes_alone(tmp_path: Path) -> None:
    record = miniature()
    for each in record["annotations"]:
        del each["segmentation"], each["area"]
    data = load_coco(write(tmp_path / "mini", record, record))
    assert not data.train.has_masks
    assert [each["area"] for each in data.train.record()["annotations"]] == [24, 56, 24, 200]
    assert set(data.train.target(0, masks=False)) == {"boxes", "labels"}


def test_boxes_are_read_whatever_the_masks_are(tmp_path: Path) -> None:
    record = miniature()
    del record["annotations"][0]["segmentation"]
    record["annotations"][1]["segmentation"] = [[10.5, 1, 18.5]]
    root = write(tmp_path / "mini", record)
    with pytest.raises(DiffLensError, match="segmentation is polygons"):
        load_coco(root)
    record["annotations"][1]["segmentation"] = miniature()["annotations"][1]["segmentation"]
    with pytest.raises(DiffLensError, match="id 1: has no mask, and others have; --head faster-rcnn reads"):
        load_coco(write(tmp_path / "mixed", record))
    boxes = load_coco(root, masks=False)
    assert not boxes.train.has_masks
    assert boxes.bad == boxes.notes == ()
    assert boxes.train.target(0, masks=False)["boxes"].tolist() == [[3, 2, 9, 6], [10.5, 1, 18.5, 8]]
    # runs of earlier versions know annotations that all have masks
    whole = write(tmp_path / "whole", miniature())
    assert load_coco(whole, masks=False).fingerprint() == load_coco(whole).fingerprint()


def test_masks_that_are_not_used_are_told(tmp_path: Path) -> None:
    record, boxes = miniature(), miniature()
    for each in (*record["annotations"][1:3], *boxes["annotations"]):
        del each["segmentation"]
    data = load_coco(write(tmp_path / "mini", record, boxes))
    assert not data.train.has_masks
    assert "2 objects with a mask: most have none, so masks are not used" in data.notes


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
        (image(2, file_name="7.png"), "images[2] (id 9)", "its file 7.png is that of image id 7"),
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
        for record in (miniature(), data.train.record())
    )
    assert before - after == 1
    assert len(data.train) in (2, 3)


HUGE = 10**400
FAR = "a polygon reaches 1000000000000.0, far outside its image of 20 x 10"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(
            ("segmentation", [[wrong, 1, 2, 3, 4, 5]], "segmentation is polygons of at least three points")
            for wrong in (float("nan"), float("inf"), -float("inf"), HUGE, "1", None, True)
        ),
        ("segmentation", [[1e12, 1, 2, 3, 4, 5]], FAR),
        ("segmentation", [[1, 1, 2, 3, 4, 5, 6]], "pairs of x and y, not 7 numbers"),
        ("segmentation", [[0, 0, 20, 10] * 300], "the mask's outline is 18,000 pixels long; at most 924"),
        ("segmentation", [[1, 1, 2, 1, 2, 2]] * 10_001, "the mask has 10,001 polygons; at most 10,000"),
        ("segmentation", {"size": [10, 20], "counts": "R1"}, "the mask's runs cover 34 pixels of 200"),
        ("segmentation", {"size": [10, 20], "counts": "o" * 20 + "0"}, "a run has more than 32 bits"),
        ("segmentation", {"size": [10, 20], "counts": "1A"}, "a run is negative"),
        *(
            ("segmentation", {"size": [10, 20], "counts": wrong}, "the mask's counts is cut or damaged")
            for wrong in ("", "o", "\x7f", "é", " ")
        ),
        ("segmentation", {"size": [10, 20], "counts": [HUGE]}, "run lengths in whole numbers or text, not"),
        (
            "segmentation",
            {"size": [10, 20], "counts": [-1, 201]},
            "run lengths in whole numbers or text, not",
        ),
        (
            "segmentation",
            {"size": [10, 20], "counts": [2**62, 200]},
            "cover 4611686018427388104 pixels of 200",
        ),
        ("segmentation", {"size": [10, HUGE], "counts": [200]}, "the mask has size"),
        ("segmentation", {}, "segmentation is polygons"),
        ("bbox", [HUGE, 1, 2, 3], "bbox is [left, top, width, height] in pixels, not [10000000000"),
        ("bbox", [1e308, 1, 1e308, 3], "is outside its image"),
        ("bbox", [True, 1, 2, 3], "bbox is"),
        ("id", 2**63, "id is a whole number of 64 bits, not 9223372036854775808"),
        ("id", True, "id is a whole number of 64 bits, not True"),
        ("image_id", HUGE, "image_id is a whole number of 64 bits, not 1000"),
        ("category_id", 3.0, "category_id is a whole number of 64 bits, not 3.0"),
        ("area", HUGE, "area is a number of pixels, not 1000"),
        ("area", -1, "area is a number of pixels, not -1"),
        ("iscrowd", HUGE, "iscrowd is 0 or 1, not 1000"),
    ],
)
def test_every_field_is_checked_before_it_is_used(
    field: str, value: object, message: str, tmp_path: Path
) -> None:
    record = miniature()
    record["annotations"][1][field] = value
    root = write(tmp_path / "mini", record)
    with pytest.raises(DiffLensError) as caught:
        load_coco(root)
    text = str(caught.value)
    assert "instances_train.json, annotations[1] (id " in text
    assert message in text
    assert len(text) < 1000
    assert len(load_coco(root, "skip").train.record()["annotations"]) == 3


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "bbox"])
def test_a_missing_field_is_named(field: str, tmp_path: Path) -> None:
    record = miniature()
    del record["annotations"][1][field]
    with pytest.raises(DiffLensError, match=rf"annotations\[1\] .*: {field} is .*, and is missing"):
        load_coco(write(tmp_path / "mini", record))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", 2**63, "id is a whole number of 64 bits"),
        ("file_name", 3, "file_name is a text of 1 to 4096 characters, not 3"),
        ("file_name", "x" * 5000, "file_name is a text"),
        ("file_name", "a\0b", "null byte"),
        ("width", HUGE, "width is a number of pixels, 1 or more"),
        ("height", 0, "height is a number of pixels, 1 or more, not 0"),
        ("width", 20.0, "width is a number of pixels"),
    ],
)
def test_every_field_of_an_image_is_checked(field: str, value: object, message: str, tmp_path: Path) -> None:
    record = miniature()
    record["images"][2][field] = value
    with pytest.raises(DiffLensError) as caught:
        load_coco(write(tmp_path / "mini", record))
    assert "instances_train.json, images[2] (id " in str(caught.value)
    assert message in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compressed_runs_are_read_as_coco_writes_them(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    seed, share = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0, 0.02, 0.5, 1]))
    mask = np.random.default_rng(seed).random((height, width)) < share
    text = compressed(mask)["counts"]
    assert runs_of(text) == run_lengths(mask)["counts"]
    # a cut or a changed character never gives a mask of the right size, or gives whole numbers
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with contextlib.suppress(ValueError):
        assert sum(runs_of(cut)) != mask.size or text[len(cut) :].strip("0") == ""
    with contextlib.suppress(ValueError):
        assert min(runs_of(data.draw(st.text(st.characters(min_codepoint=40, max_codepoint=120))))) >= 0


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["images", "annotations", "categories"]),
    place=st.integers(0, 1),
    field=st.integers(0, 7),
    value=_JSON,
)
def test_any_value_anywhere_is_read_or_refused(
    shared: Path, kind: str, place: int, field: int, value: object
) -> None:
    record = miniature()
    entry = record[kind][place]
    entry[list(entry)[field % len(entry)]] = value
    (shared / "annotations" / "instances_train.json").write_text(json.dumps(record))
    with contextlib.suppress(DiffLensError):
        load_coco(shared, "skip").train.fingerprint()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("coco") / "mini", miniature())


def test_two_classes_of_one_name_stay_two_and_classes_without_objects_are_named(tmp_path: Path) -> None:
    record = miniature()
    record["categories"] = [{"id": k, "name": "cup" if k != 5 else "spoon"} for k in (3, 44, 5)]
    data = load_coco(write(tmp_path / "mini", record, record))
    assert data.classes == ("cup (3)", "spoon", "cup (44)")
    assert [each["name"] for each in data.val.record()["categories"]] == list(data.classes)
    assert data.notes == tuple(
        f"classes without an object in the {split} images: spoon" for split in ("train", "val")
    )


def test_ids_of_64_bits_are_evaluated(tmp_path: Path) -> None:
    text = (
        json.dumps(miniature())
        .replace('"id": 44', f'"id": {2**63 - 1}')
        .replace('_id": 44', f'_id": {2**63 - 1}')
    )
    record = json.loads(text)
    truth = load_coco(write(tmp_path / "mini", record, record)).val.record()
    results = [
        {key: each[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for each in truth["annotations"]
        if not each["iscrowd"]
    ]
    assert coco_metrics(truth, results, masks=False)["box_ap"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["7.jpg", "7.tif"])
def test_labels_of_a_turned_photograph(name: str, tmp_path: Path) -> None:
    record = miniature()
    record["images"][0]["file_name"] = name
    root = write(tmp_path / "mini", record)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (20, 10)).save(root / "train" / name, exif=exif)
    message = (
        r"images\[0\] \(id 7\): is recorded as 20 x 10 pixels, but the file has 10 x 20; its EXIF "
        "orientation turns it, and the size is that of its pixels as they are stored: give --exif ignore"
    )
    with pytest.raises(DiffLensError, match=message):
        load_coco(root)
    data = load_coco(root, exif="ignore")
    assert data.train.image(0).shape == (3, 10, 20)
    assert data.notes[0].startswith("images with an EXIF orientation: 1, read as stored")


def test_masks_that_do_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difflens.data.dense.coco._MOST_MASK_BYTES", 399)
    with pytest.raises(
        DiffLensError, match=r"image 7.png: 2 masks of 20 x 10 pixels take more than 399 bytes"
    ):
        load_coco(write(tmp_path / "mini", miniature()))


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
    found = load_coco(write(tmp_path / "mini", record)).train.record()["annotations"]
    assert [each["area"] for each in found] == [24, decode(triangle, (10, 20)).sum(), 24, 200]
    assert found[1]["area"] < 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "broken JSON"),
        ("[" * 100_000, "broken JSON: recursion limit exceeded"),
        ('{"a": ' * 100_000, "broken JSON: recursion limit exceeded"),
        (f'{{"images": {"9" * 100_000}}}', "broken JSON: number out of range"),
        (r'{"images": "\ud800"}', "broken JSON: .* line 1 column"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": 3}]}',
            "name is a text .*, not 3",
        ),
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


def test_a_pipe_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "mini", miniature())
    file = root / "annotations" / "instances_train.json"
    with file.open("ab") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(DiffLensError, match=r"instances_train.json has 1,099,511,627,776 bytes; at most"):
        load_coco(root)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DiffLensError, match=r"instances_train.json is not a regular file"):
        load_coco(root)


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path) -> None:
    assert len(load_coco(write(tmp_path / "mini", "\ufeff" + json.dumps(miniature()))).train) == 3


def test_a_folder_that_is_not_cocos(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="no such folder"):
        load_coco(tmp_path / "nowhere")
    with pytest.raises(DiffLensError, match="instances_train"):
        load_coco(tmp_path)
