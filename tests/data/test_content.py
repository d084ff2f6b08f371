"""The fingerprint of data follows the content of its files, and is read once while no file changes."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from difflens import DiffLensError, ProbeConfig, load_data, probe
from difflens.data import content
from difflens.data.content import content_digest
from difflens.data.split import FileSplit, ImageSplit, JoinedSplit, LibrarySplit, hold_out


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{k}.bin" for k in range(3)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * 10)
    return paths


def flip(path: Path) -> None:
    """Change one bit of a file, and give it back its time of modification."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_files_are_read_once_while_they_stay_as_they_are(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLED_SECONDS", 0.0)
    read: list[Path] = []
    checksum = content.checksum
    monkeypatch.setattr(content, "checksum", lambda path: read.append(path) or checksum(path))
    before = content_digest(files)
    assert content_digest(files) == before
    assert sorted(read) == files
    flip(files[1])
    assert content_digest(files) != before
    assert len(read) == 6
    flip(files[1])
    assert content_digest(files) == before


def test_a_file_that_changed_just_now_is_not_remembered(files: list[Path]) -> None:
    before = content_digest(files)
    for _ in range(3):  # within one tick of the file system's clock
        flip(files[0])
        assert content_digest(files) != before
        flip(files[0])
        assert content_digest(files) == before


def test_a_cache_that_is_damaged_or_cannot_be_written(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLED_SECONDS", 0.0)
    monkeypatch.setenv("DIFFLENS_CACHE", str(tmp_path / "cache"))
    before = content_digest(files)
    (kept,) = (tmp_path / "cache" / "checksums").iterdir()
    for damaged in (b"", b"\xff\xfe", kept.read_bytes()[:20]):
        kept.write_bytes(damaged)
        assert content_digest(files) == before
    monkeypatch.setenv("DIFFLENS_CACHE", str(files[0] / "below a file"))
    assert content_digest(files) == before


def test_missing_files_and_pipes_are_not_read(files: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert content_digest([*files, tmp_path / "pipe"]) == content_digest([*files, tmp_path / "none"])
    assert content_digest(files) != content_digest(files[::-1])


@pytest.mark.parametrize(
    "split",
    [
        lambda root, ids: FileSplit("train", ids, root=root),
        lambda root, ids: hold_out(FileSplit("train", ids, torch.zeros(len(ids)).long(), root), 2)[1],
        lambda root, ids: JoinedSplit("train", [FileSplit("a", [i], root=root) for i in ids]),
        lambda root, ids: LibrarySplit("train", [{"i": {"bytes": None, "path": root / i}} for i in ids], "i"),
        lambda root, ids: LibrarySplit(
            "train", [{"i": {"bytes": (root / i).read_bytes(), "path": None}} for i in ids], "i"
        ),
    ],
    ids=["files", "subset", "joined", "paths", "bytes"],
)
def test_every_kind_of_split_follows_the_content(
    files: list[Path], tmp_path: Path, split: Callable[[Path, list[str]], ImageSplit]
) -> None:
    def made() -> ImageSplit:
        return split(tmp_path, [path.name for path in files])

    before = made()
    assert made().fingerprint() == before.fingerprint()
    flip(files[1])
    assert made().fingerprint() != before.fingerprint()
    assert made().former_fingerprint() == before.former_fingerprint()


def test_the_fingerprint_does_not_depend_on_the_place(image_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(image_tree, tmp_path / "copy")
    assert load_data(str(image_tree)).fingerprint() == load_data(str(tmp_path / "copy")).fingerprint()


def test_a_run_of_other_content_is_refused_and_an_earlier_one_goes_on(
    image_tree: Path, knn_run: ProbeConfig
) -> None:
    probe(knn_run)
    flip(image_tree / "train" / "red" / "0.png")
    with pytest.raises(DiffLensError, match="data_fingerprint was"):
        probe(replace(knn_run, resume=True))
    config = knn_run.out / "config.yaml"
    record = yaml.safe_load(config.read_text())
    former = load_data(str(image_tree)).former_fingerprint()
    config.write_text(yaml.safe_dump({**record, "data_fingerprint": former}))
    probe(replace(knn_run, resume=True))
