import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflens.data.images import BadImage, read_image
from difflens.data.load import load_data, load_unlabelled
from difflens.errors import DiffLensError

datasets = pytest.importorskip("datasets")

Tree = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def image(i: int) -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), i, dtype=np.uint8))


def table(labels: list[object], feature: object, image_column: str = "image") -> "datasets.Dataset":
    features = datasets.Features({image_column: datasets.Image(), "label": feature})
    columns = {image_column: [image(i) for i in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(columns, features=features)


def parquet(folder: Path, **splits: "datasets.Dataset") -> str:
    folder.mkdir()
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return f"hf:{folder}"


def test_an_imagefolder_layout(tree: Tree) -> None:
    root = tree({"train/cat": 2, "train/dog": 1, "test/cat": 1, "test/dog": 1})
    data = load_data(f"hf:{root}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.train.image(2), read_image(root / "train/dog/0.png"))
    (root / "train/dog/0.png").write_bytes(b"gone bad")
    with pytest.raises(BadImage, match=r"train/00002 \(.*train/dog/0\.png\): not an image"):
        data.train.image(2)


def test_parquet_with_class_labels_and_a_validation_split(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["cat", "dog"])
    spec = parquet(tmp_path / "set", train=table([0, 1, 1], names), validation=table([1, 0], names))
    data = load_data(spec)
    assert (data.classes, data.test.name) == (("cat", "dog"), "test")
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [1, 0]
    assert data.train.image(2).unique().tolist() == [2]
    assert data.train.ids == ["train/00000", "train/00001", "train/00002"]


def test_each_split_has_its_own_order_of_names(tmp_path: Path) -> None:
    train = table([0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    test = table([0, 1, 1], datasets.ClassLabel(names=["dog", "cat"]))
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "set"))
    data = load_data(f"hf:{tmp_path / 'set'}")
    assert data.test.labels is not None
    assert [data.classes[label] for label in data.test.labels] == ["dog", "cat", "cat"]
    more = table([2], datasets.ClassLabel(names=["dog", "cat", "fox"]))
    datasets.DatasetDict(train=train, test=more).save_to_disk(str(tmp_path / "more"))
    with pytest.raises(DiffLensError, match="labels that its training split lacks: fox"):
        load_data(f"hf:{tmp_path / 'more'}")


def test_a_test_split_with_secret_labels_is_passed_over(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["cat", "dog"])
    spec = parquet(
        tmp_path / "set",
        train=table([0, 1], names),
        test=table([-1, -1, -1], names),
        validation=table([1], names),
    )
    assert len(load_data(spec).test) == 1


def test_a_set_with_training_images_only_is_split(tmp_path: Path) -> None:
    spec = parquet(tmp_path / "set", train=table([i % 2 for i in range(20)], datasets.Value("int64")))
    data = load_data(spec)
    assert (data.classes, data.test.name) == (("0", "1"), "held-out")
    assert data.test.index.tolist() == [8, 9, 18, 19]
    assert data.test.image(1).unique().tolist() == [9]
    # whoever reads them without labels holds out the same images
    bare = load_data(spec, labels=False)
    assert (bare.classes, bare.test.labels, bare.test.index.tolist()) == ((), None, [8, 9, 18, 19])
    assert load_unlabelled(spec).index.tolist() == data.train.index.tolist()


def test_words_as_labels_and_another_name_for_the_images(tmp_path: Path) -> None:
    word = datasets.Value("string")
    train, test = table(["dog", "cat"], word, "photo"), table(["cat"], word, "photo")
    data = load_data(parquet(tmp_path / "set", train=train, test=test))
    assert data.classes == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [1, 0]
    with pytest.raises(DiffLensError, match="labels that its training split lacks: emu"):
        load_data(parquet(tmp_path / "other", train=train, test=table(["emu"], word, "photo")))


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    whole = datasets.DatasetDict({"train": table([0, 1, 1], names), "test": table([0], names)})
    whole.save_to_disk(tmp_path / "saved")
    assert len(load_data(f"hf:{tmp_path / 'saved'}").train) == 3


def test_unlabelled_needs_no_label_column(tmp_path: Path) -> None:
    only = datasets.Dataset.from_dict(
        {"image": [image(1)]}, features=datasets.Features({"image": datasets.Image()})
    )
    spec = parquet(tmp_path / "set", train=only)
    split = load_unlabelled(spec)
    assert (len(split), split.labels) == (1, None)
    with pytest.raises(DiffLensError, match=r"no column of class labels; its columns are image \(Image\)"):
        load_data(spec)


def test_a_set_without_images_or_training_split_is_explained(tmp_path: Path) -> None:
    text = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with pytest.raises(DiffLensError, match=r"no column of images; its columns are text \(Value\)"):
        load_data(parquet(tmp_path / "text", train=text))
    with pytest.raises(DiffLensError, match="no split train; it has test"):
        load_data(parquet(tmp_path / "test_only", test=table([0], datasets.Value("int64"))))


def test_an_unknown_id_is_explained() -> None:
    with pytest.raises(DiffLensError, match="'nobody/nothing' could not be loaded"):
        load_data("hf:nobody/nothing")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DiffLensError, match=r"pip install difflens\[hub\]"):
        load_data("hf:mnist")


def test_a_pipe_in_a_folder_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "data.parquet")
    with pytest.raises(DiffLensError, match=r"data\.parquet is no regular file"):
        load_data(f"hf:{tmp_path}")


def test_several_columns_without_a_usual_name_are_refused(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["cat", "dog"])
    fields = {"front": datasets.Image(), "back": datasets.Image(), "animal": kind, "coat": kind}
    rows = {"front": [image(1)] * 2, "back": [image(2)] * 2, "animal": [0, 1], "coat": [1, 0]}
    two = datasets.Dataset.from_dict(rows, features=datasets.Features(fields))
    with pytest.raises(DiffLensError, match=r"class labels in the columns animal, coat; .* meant to label"):
        load_data(parquet(tmp_path / "labels", train=two))
    with pytest.raises(DiffLensError, match=r"images in the columns front, back; .* meant to image"):
        load_data(parquet(tmp_path / "images", train=two.rename_column("animal", "label")))
    named = two.rename_columns({"animal": "label", "back": "img"})
    data = load_data(parquet(tmp_path / "named", train=named, test=named))
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 1]
    assert data.train.image(0).unique().tolist() == [2]
