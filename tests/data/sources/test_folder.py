from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from difflens.data.files import list_images
from difflens.data.images import read_image
from difflens.data.load import load_data, load_unlabelled
from difflens.errors import DiffLensError

Tree = Callable[..., Path]
PETS = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2}


@pytest.mark.parametrize("prefix", ["folder:", ""])
def test_a_tree_is_read_in_order(tree: Tree, prefix: str) -> None:
    root = tree(PETS)
    data = load_data(f"{prefix}{root}")
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert data.train.ids == [
        "train/cat/0.png",
        "train/cat/1.png",
        "train/cat/2.png",
        "train/dog/0.png",
        "train/dog/1.png",
    ]
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert (data.test.name, data.test.labels.tolist()) == ("val", [0, 1, 1])
    assert torch.equal(data.test.image(2), read_image(root / "val/dog/1.png"))


def test_a_subset_keeps_images_labels_and_noise(tree: Tree) -> None:
    train = load_data(str(tree(PETS))).train
    part = train.subset(torch.tensor([4, 1])).subset(torch.tensor([0]))
    assert (part.ids, part.index.tolist(), len(part)) == (["train/dog/1.png"], [4], 1)
    assert part.labels is not None
    assert part.labels.tolist() == [1]
    assert torch.equal(part.image(0), train.image(4))


def test_test_comes_before_val_unless_its_labels_are_secret(tree: Tree) -> None:
    assert load_data(str(tree(PETS | {"test/cat": 2, "test/dog": 2}))).test.name == "test"
    assert load_data(str(tree(PETS | {"test": 2}, name="like_imagenet"))).test.name == "val"


def test_deep_folders_and_links_are_followed_and_other_files_passed_over(tree: Tree) -> None:
    root = tree(PETS | {"train/cat/deep/er": 1, "elsewhere": 2})
    (root / "train/cat/linked").symlink_to(root / "elsewhere")
    (root / "train/cat/deep/round").symlink_to(root / "train/cat")
    for name in ("Thumbs.db", "._0.png", ".hidden.png"):
        (root / "train/cat" / name).write_text("not an image")
    (root / "train/.cache").mkdir()
    cats = [name for name in load_data(str(root)).train.ids if "cat" in name]
    assert cats == [
        "train/cat/0.png",
        "train/cat/1.png",
        "train/cat/2.png",
        "train/cat/deep/er/0.png",
        "train/cat/linked/0.png",
        "train/cat/linked/1.png",
    ]


def test_capital_suffixes_are_images(tree: Tree) -> None:
    assert len(load_data(str(tree(PETS, suffix=".JPG"))).train) == 5


def test_the_fingerprint_follows_names_and_classes(tree: Tree) -> None:
    root = tree(PETS)
    before = load_data(str(root)).fingerprint()
    assert before == load_data(f"folder:{root}").fingerprint()
    (root / "train/dog/1.png").rename(root / "train/dog/7.png")
    assert before != load_data(str(root)).fingerprint()


def test_without_labels_no_class_folders_are_needed(tree: Tree) -> None:
    data = load_data(str(tree({"train": 2, "test/a": 1})), labels=False)
    assert (data.classes, data.train.labels, len(data.train), len(data.test)) == ((), None, 2, 1)


def test_unlabelled_takes_train_or_the_whole_folder(tree: Tree) -> None:
    split = load_unlabelled(str(tree(PETS)))
    assert (len(split), split.labels) == (5, None)
    flat = load_unlabelled(f"folder:{tree({'a/b': 2, 'c': 1}, name='flat')}")
    assert flat.ids == ["a/b/0.png", "a/b/1.png", "c/0.png"]
    assert flat.image(2).shape == (3, 12, 10)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({}, ["no such folder", "pets"]),
        ({"": 0}, ["pets has no train/ folder", "train/CLASS/IMAGE"]),
        ({"val/cat": 1}, ["pets has no train/ folder"]),
        ({"train/cat": 1}, ["neither a test/ nor a val/ folder"]),
        ({"train/cat": 1, "val": 0}, ["val has no class folders"]),
        ({"train": 2, "val/cat": 1}, ["train has no class folders"]),
        (
            {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/emu": 1},
            ["same class folders in train/ and val/", "only in train/: dog", "only in val/: emu"],
        ),
        (PETS | {"train/emu": 0, "val/emu": 1}, ["no images in", "train/emu", "no files"]),
    ],
)
def test_a_wrong_tree_is_explained(tree: Tree, folders: dict[str, int], expected: list[str]) -> None:
    root = tree(folders)
    with pytest.raises(DiffLensError) as caught:
        load_data(f"folder:{root}")
    assert all(part in str(caught.value) for part in expected), caught.value


def test_files_of_other_types_are_explained(tree: Tree) -> None:
    root = tree(PETS | {"train/emu": 0, "val/emu": 1})
    (root / "train/emu/photo.heic").write_bytes(b"x")
    with pytest.raises(DiffLensError, match=r"train/emu: only files of type \.heic; images end in \.jpg"):
        load_data(str(root))


def test_a_file_is_not_a_folder(tree: Tree) -> None:
    with pytest.raises(DiffLensError, match="is a file"):
        load_data(f"folder:{tree(PETS) / 'val/cat/0.png'}")


def test_list_images_takes_files_and_folders(tree: Tree) -> None:
    root = tree({"b": 2, "a": 1})
    assert list_images([root / "b/1.png", str(root)]) == [
        root / "b/1.png",
        root / "a/0.png",
        root / "b/0.png",
    ]


def test_list_images_explains_what_is_missing(tree: Tree) -> None:
    root = tree({"empty": 0})
    for paths, message in (
        ([root / "none.png"], "no such file or folder"),
        ([root], "no images in"),
        ([], "no images given"),
    ):
        with pytest.raises(DiffLensError, match=message):
            list_images(paths)


def test_an_unreadable_folder_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    root = tree(PETS)
    scan = os.scandir

    def refuse(path: str | Path) -> object:  # root may read anything, so permissions cannot show it
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DiffLensError, match=r"cannot read the folder .*dog: Permission denied"):
        list_images([root])


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-py"])
def test_cifars_batches_are_named(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"\x80\x02")
    for load in (load_data, load_unlabelled):
        with pytest.raises(DiffLensError, match=r"CIFAR's batches .* --data torchvision:CIFAR10 reads"):
            load(f"folder:{tmp_path}")


def test_cifar_100_is_told_from_a_class_tree(tree: Tree, tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(DiffLensError, match="torchvision:CIFAR100"):
        load_data(str(tmp_path))
    assert len(load_data(str(tree(PETS))).classes) == 2
