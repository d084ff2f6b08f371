"""Test images that are copies of training images are counted and named."""

import shutil
from pathlib import Path

import pytest
import torch

from difflens import ProbeConfig, load_data, probe
from difflens.data.copies import copies
from difflens.data.split import LibrarySplit, MemorySplit


def copy_into_test(tree: Path) -> None:
    shutil.copy(tree / "train" / "red" / "0.png", tree / "val" / "red" / "again.png")


def test_files_are_compared_byte_by_byte(image_tree: Path) -> None:
    data = load_data(str(image_tree))
    assert copies(data.train, data.test) == ""
    copy_into_test(image_tree)
    data = load_data(str(image_tree))
    count = len(data.test)
    assert copies(data.train, data.test) == (
        f"copies of training images: 1 of {count} {data.test.name} images; the first is "
        "val/red/again.png, of train/red/0.png"
    )


def test_held_out_files_too(image_tree: Path) -> None:
    folder = image_tree / "train"
    for path in sorted((folder / "red").iterdir()):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    data = load_data(str(folder), val_fraction=0.4)
    assert copies(data.train, data.test).startswith("copies of training images: ")


def test_files_that_cannot_be_read_are_no_copies(image_tree: Path) -> None:
    data = load_data(str(image_tree))
    (image_tree / "train" / "red" / "0.png").unlink()
    (image_tree / data.test.ids[0]).unlink()
    assert copies(data.train, data.test) == ""


def test_images_in_memory_are_compared_by_their_pixels() -> None:
    pixels = torch.arange(5 * 3 * 4).to(torch.uint8).reshape(5, 1, 3, 4)
    train, test = MemorySplit("train", pixels[:3]), MemorySplit("test", pixels[2:])
    assert copies(train, test) == (
        "copies of training images: 1 of 3 test images; the first is test/00000, of train/00002"
    )
    assert copies(train.subset([0, 1]), test) == ""
    assert copies(train.subset([2]), test).endswith("the first is test/00000, of train/00002")


def test_images_that_a_library_decodes_are_not_compared() -> None:
    decoded = LibrarySplit("train", [{"image": None}], "image")
    assert copies(decoded, decoded) == ""


def test_a_command_says_it_and_its_report_keeps_it(
    image_tree: Path, knn_run: ProbeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_into_test(image_tree)
    probe(knn_run)
    said = "val images; the first is val/red/again.png, of train/red/0.png"
    assert said in capsys.readouterr().err
    assert said in (knn_run.out / "report.html").read_text(encoding="utf-8")
