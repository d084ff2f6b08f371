"""The lists of images in folders, and text files beside them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difflens.data.files import find_images, list_images, read_lines
from difflens.data.load import load_data, load_unlabelled
from difflens.errors import DiffLensError
from difflens.run.console import note
from difflens.run.text import on_disk


def picture(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path, kind)
    return path


def test_pictures_are_known_by_suffix_or_content_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note.cache_clear()
    kinds = {
        "a.jfif": "JPEG",
        "b.jpe": "JPEG",
        "c.avif": "AVIF",
        "d": "PNG",
        "e.WebP": "WEBP",
        "F.TIF": "TIFF",
    }
    for name, kind in kinds.items():
        picture(tmp_path / name, kind)
    # a thumbnail in a RAW file, the copy of an editor, and thumbnails of a server
    for name, kind in (("g.nef", "TIFF"), ("a.jpg_original", "JPEG"), ("@eaDir/a.jpg", "JPEG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / name, kind)
    for name in ("1.heic", "2.heic", "README", "notes.txt"):
        (tmp_path / name).write_bytes(b"ftypheic")
    (tmp_path / ".hidden").write_bytes(b"?")
    os.mkfifo(tmp_path / "pipe")
    assert [path.name for path in find_images(tmp_path)] == sorted(kinds)
    shown = capsys.readouterr().err
    assert shown.startswith("7 files are left out, as not of a format that is read: ")
    assert ".heic (2), .jpg_original (1), .nef (1), .txt (1), no suffix (2)" in shown


def test_links_lead_out_of_the_folder_and_not_back(tmp_path: Path, tree: Callable[..., Path]) -> None:
    root, elsewhere = tree({"train/cat": 1, "train/dog": 1, "val/cat": 1}), tree({"more": 2}, "elsewhere")
    cats = root / "train" / "cat"
    for name, target in (("up", ".."), ("top", "../.."), ("dogs", "../dog"), ("more", elsewhere / "more")):
        (cats / name).symlink_to(target, target_is_directory=True)
    (elsewhere / "more" / "back").symlink_to(cats, target_is_directory=True)
    expected = ["cat/0.png", "cat/more/0.png", "cat/more/1.png", "dog/0.png"]
    assert [path.relative_to(root / "train").as_posix() for path in find_images(root / "train")] == expected
    (root / "val" / "dog").mkdir()
    picture(root / "val" / "dog" / "0.png")
    train = load_data(str(root)).train
    assert [name.removeprefix("train/") for name in train.ids] == expected
    assert train.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("spec", [".", "train/.."])
def test_data_of_the_working_directory_has_its_name(
    spec: str, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_tree)
    assert load_data(spec).name == image_tree.name


def test_one_line_tells_of_a_whole_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note.cache_clear()
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "0.png")
            (tmp_path / split / name / "0.heic").write_bytes(b"?")
    load_data(str(tmp_path))
    assert capsys.readouterr().err == "4 files are left out, as not of a format that is read: .heic (4)\n"


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "test"):
        picture(tmp_path / split / odd / f"{odd}.png")
    data = load_data(str(tmp_path))
    assert data.classes == (on_disk(odd),)
    assert data.train.ids == [f"train/{odd}/{odd}.png"]
    assert data.train.image(0).shape == (3, 3, 4)
    assert len(data.fingerprint()) == 64
    assert len(load_unlabelled(str(tmp_path)).fingerprint()) == 64
    assert len(list_images([tmp_path])) == 2
    (tmp_path / "train" / odd / f"{odd}.png").write_bytes(b"?")
    with pytest.raises(DiffLensError, match=f"{odd}.png: not an image"):
        data.train.image(0)


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffcat\r\n\u2028dog \n\nemu".encode())
    assert read_lines(path, "names") == ["cat", "dog", "", "emu"]
    path.write_bytes(b"caf\xe9.png\n")
    assert read_lines(path, "names", files=True) == [os.fsdecode(b"caf\xe9.png"), ""]
    with pytest.raises(DiffLensError, match=r"line 1: not a text file in UTF-8 .*; expected names"):
        read_lines(path, "names")
    path.write_bytes("cat".encode("utf-16"))
    with pytest.raises(DiffLensError, match="not a text file"):
        read_lines(path, "names", files=True)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))))
def test_every_line_keeps_its_number(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / "list.txt"
    path.write_bytes("\n".join(["first", *lines]).encode())
    assert read_lines(path, "names") == ["first", *(line.strip() for line in lines)]


def test_a_pipe_a_missing_and_a_huge_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("abc")
    monkeypatch.setattr("difflens.data.files._MOST_TEXT", 2)
    for name, message in (
        ("pipe", "is not a regular file"),
        ("none", "there is no"),
        ("long", "has 3 bytes; expected names, at most 2"),
    ):
        with pytest.raises(DiffLensError, match=message):
            read_lines(tmp_path / name, "names")
