"""`extract PHOTOS --out FILE`: a vector for each image, with its name beside it."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from difflens import DiffLensError, ExtractConfig, FeatureExtractor, extract
from tests.helpers.cli import run


@pytest.fixture
def options(backbone_folder: Path, image_tree: Path) -> list[object]:
    places = ["--blocks", 4, 6, "--noise-steps", 3, 9, "--workers", 0, "--device", "cpu"]
    return ["extract", image_tree, "--backbone", backbone_folder, *places]


def test_npy_and_the_names_beside_it(
    backbone_folder: Path,
    image_tree: Path,
    tmp_path: Path,
    options: list[object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All images of all subfolders, each with the noise of its position, as `FeatureExtractor`."""
    out = tmp_path / "deep" / "features.npy"
    assert run(*options, "--out", out) == 0
    assert f"Vectors: {out}, names in {out.with_suffix('.json')}" in "".join(
        capsys.readouterr().out.splitlines()
    )
    vectors, described = np.load(out), json.loads(out.with_suffix(".json").read_text())
    assert (vectors.shape, vectors.dtype) == ((51, 64), np.float32)
    names = described["images"]
    assert names == sorted(path.relative_to(image_tree).as_posix() for path in image_tree.rglob("*.png"))
    extractor = FeatureExtractor(backbone_folder, blocks=(4, 6), noise_steps=(3, 9))
    assert [(each["block"], each["noise_step"]) for each in described["columns"]] == extractor.places
    assert sum(each["channels"] for each in described["columns"]) == extractor.num_features
    batch = torch.stack([extractor.transform(image_tree / name) for name in names])
    expected = extractor.pooled(batch, index=torch.arange(len(names)))
    assert torch.equal(torch.from_numpy(vectors), expected)


def test_every_format_holds_the_same(image_tree: Path, tmp_path: Path, options: list[object]) -> None:
    import pyarrow.parquet

    for suffix in ("npy", "pt", "csv", "parquet"):
        assert run(*options, "--out", tmp_path / f"f.{suffix}") == 0
    expected, names = np.load(tmp_path / "f.npy"), json.loads((tmp_path / "f.json").read_text())["images"]
    loaded = torch.load(tmp_path / "f.pt", weights_only=True)
    assert loaded["images"] == names
    assert np.array_equal(loaded["vectors"].numpy(), expected)
    header, *rows = csv.reader(io.StringIO((tmp_path / "f.csv").read_text()))
    assert [row[0] for row in rows] == names
    assert (header[:2], len(header)) == (["image", "block4-t3-0"], 65)
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=np.float32), expected)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    assert table["image"].to_pylist() == names
    assert np.array_equal(np.array(table["vector"].to_pylist(), dtype=np.float32), expected)
    assert json.loads(table.schema.metadata[b"difflens"])["seed"] == 0


def test_labelled_data_brings_its_labels(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    table = ExtractConfig(
        out=tmp_path / "f.csv",
        data=str(image_tree),
        backbone=str(backbone_folder),
        splits=("test",),
        device="cpu",
        workers=0,
    )
    result = extract(table)
    assert result.images == 15
    rows = list(csv.DictReader(io.StringIO(table.out.read_text())))
    assert [row["label"] for row in rows] == [row["image"].split("/")[1] for row in rows]
    pickled = replace(table, out=tmp_path / "f.pt", dtype="bfloat16")
    extract(pickled)
    loaded = torch.load(pickled.out, weights_only=True)
    assert loaded["vectors"].dtype == torch.bfloat16
    assert [loaded["classes"][label] for label in loaded["labels"]] == [row["label"] for row in rows]


def test_photos_become_a_store(image_tree: Path, tmp_path: Path, options: list[object]) -> None:
    """A folder of images that has train/ among its subfolders is read as a whole."""
    from difflens import FeatureStore

    assert run(*options, "--out", tmp_path / "store") == 0
    store = FeatureStore(tmp_path / "store")
    assert (store.splits, len(store.ids("images"))) == (("images",), 51)


def test_bad_images_are_left_out(image_tree: Path, tmp_path: Path, options: list[object]) -> None:
    bad = image_tree / "train" / "red" / "3.png"
    bad.write_bytes(b"?")
    out = tmp_path / "f.npy"
    assert run(*options, "--out", out) == 2
    assert not any(tmp_path.glob("f.*"))
    assert run(*options, "--on-bad-image", "skip", "--out", out) == 0
    names = json.loads((tmp_path / "f.json").read_text())["images"]
    assert len(np.load(out)) == len(names) == 50
    assert "train/red/3.png" not in names
    # the numbers of the others are what they were
    noise = json.loads((tmp_path / "f.json").read_text())["noise_index"]
    (missing,) = {*range(51)} - {*noise}
    assert missing < 50
    assert noise == sorted(noise)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--out", "f.npy", "--pool", 2],
            "a vector is the mean of a map over its positions: leave out --pool",
        ),
        (["--out", "f.npy", "--resume"], "a file of vectors is written at once: leave out --resume"),
        (["--out", "f.npy", "--format", "parquet"], "the suffix of --out is the format of a file"),
        (["--out", "f.npy", "--data", "fashion"], "PHOTOS are the images to read: leave out --data"),
        (["--out", "store", "--unlabelled"], "PHOTOS are the images to read: leave out --unlabelled"),
        (["--out", "f.npy", "--dtype", "bfloat16"], "npy has no type bfloat16"),
        (["--out", "f.npz"], "files of vectors are .npy, .pt, .csv, .parquet; a store is a folder"),
        (["--out", "there.json/f.npy"], "cannot write there.json/f.npy: "),
        (["--out", "there.npy"], "there.json exists already: choose another name, or remove it"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so_and_writes_nothing(
    options: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("mine")
    assert run(*options, *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"there.json", "images"}
    assert Path("there.json").read_text() == "mine"


@pytest.mark.parametrize("place", ["nowhere", "file.txt", "empty"])
def test_photos_are_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    assert run("extract", tmp_path / place, "--out", tmp_path / "f.npy") == 2
    expected = {
        "nowhere": "no such folder",
        "file.txt": "is a file; expected a folder of images",
        "empty": "no images in",
    }
    assert expected[place] in " ".join(capsys.readouterr().err.split())


def test_a_disk_that_is_full_leaves_nothing(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difflens.studies import vectors

    def full(path: Path, content: bytes) -> None:
        raise DiffLensError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(vectors, "write_bytes", full)
    run = ExtractConfig(
        out=tmp_path / "f.npy", photos=image_tree, backbone=backbone_folder, device="cpu", workers=0
    )
    with pytest.raises(DiffLensError, match="No space left"):
        extract(run)
    assert not any(tmp_path.glob("*f.*"))
