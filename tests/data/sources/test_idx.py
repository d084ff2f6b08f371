import gzip
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from difflens.data.load import load_data, load_unlabelled
from difflens.data.sources import idx
from difflens.errors import DiffLensError

NAMES = {"train": "train", "test": "t10k"}


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """An IDX folder with gzipped training files and plain test files, 5 x 7 pixels, labels 0 .. 2."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        images = rng.integers(0, 256, (count, 5, 7), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 3)):
            path = tmp_path / f"{NAMES[split]}-{name}-ubyte"
            if split == "train":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx_bytes(array)))
            else:
                path.write_bytes(idx_bytes(array))
    return tmp_path


def test_an_idx_folder_is_read(digits: Path) -> None:
    data = load_data(f"idx:{digits}")
    assert data.classes == ("0", "1", "2")
    assert data.train.pixels is not None
    assert data.test.labels is not None
    assert data.train.pixels.shape == (6, 1, 5, 7)
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.train.ids[4] == "train/00004"
    expected = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
    assert torch.equal(data.train.image(5)[0], torch.from_numpy(expected[5]))


def test_labels_can_be_left_out(digits: Path) -> None:
    data = load_data(f"idx:{digits}", labels=False)
    assert (data.classes, data.train.labels, data.test.labels) == ((), None, None)
    split = load_unlabelled(f"idx:{digits}")
    assert (len(split), split.labels) == (6, None)


def test_the_fingerprint_follows_pixels(digits: Path) -> None:
    before = load_data(f"idx:{digits}").fingerprint()
    path = digits / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert load_data(f"idx:{digits}").fingerprint() != before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t10k-images-idx3-ubyte", None, "has neither t10k-images-idx3-ubyte.gz nor t10k-images-idx3-ubyte"),
        ("t10k-images-idx3-ubyte", lambda old: old[:-10], "promises 3 x 5 x 7 bytes, 95 follow"),
        ("t10k-images-idx3-ubyte", lambda old: old[:6], "truncated or damaged"),
        ("t10k-images-idx3-ubyte", lambda old: old + b"x", "truncated or damaged"),
        ("t10k-images-idx3-ubyte", lambda old: b"", "not an IDX file"),
        ("t10k-images-idx3-ubyte", lambda old: b"\x89PNG" + old[4:], "begins with 0x89504e47"),
        (
            "t10k-labels-idx1-ubyte",
            lambda old: idx_bytes(np.zeros(2, np.uint8)),
            "3 test images but 2 labels",
        ),
        ("train-images-idx3-ubyte.gz", lambda old: old[:-30], "cannot be read as a gzip file"),
        ("train-images-idx3-ubyte.gz", lambda old: b"no gzip", "cannot be read as a gzip file"),
    ],
)
def test_a_damaged_idx_file_is_explained(digits: Path, name: str, change: object, message: str) -> None:
    path = digits / name
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DiffLensError) as caught:
        load_data(f"idx:{digits}")
    assert message in str(caught.value)
    assert str(digits) in str(caught.value)


def test_a_missing_and_an_empty_set_are_explained(digits: Path) -> None:
    with pytest.raises(DiffLensError, match="no such folder"):
        load_data(f"idx:{digits / 'none'}")
    for name, shape in (("images-idx3", (0, 5, 7)), ("labels-idx1", (0,))):
        (digits / f"t10k-{name}-ubyte").write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    with pytest.raises(DiffLensError, match="no test images"):
        load_data(f"idx:{digits}")


# --- Fashion-MNIST ---


def test_the_bundled_subset_is_balanced_and_disjoint() -> None:
    data = load_data("fashion")
    assert data.classes == idx.FASHION_CLASSES
    for split, count in ((data.train, 1000), (data.test, 200)):
        assert split.pixels is not None
        assert split.labels is not None
        assert split.pixels.shape == (10 * count, 1, 28, 28)
        assert split.labels.bincount().tolist() == [count] * 10
    train, test = (
        {image.numpy().tobytes() for image in split.pixels}
        for split in (data.train, data.test)
        if split.pixels is not None
    )
    assert not train & test
    assert data.fingerprint() == load_data("fashion").fingerprint()
    assert load_unlabelled("fashion").labels is None


@pytest.mark.skipif(not idx.DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_bundled_subset_can_be_made_again_from_the_full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFLENS_FASHION_MNIST", raising=False)
    tool = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "make_fashion_subset.py"))
    arrays = tool["select"](idx.DEBIAN_FOLDER)
    bundled = load_data("fashion")
    for split in (bundled.train, bundled.test):
        assert split.pixels is not None
        assert split.labels is not None
        assert np.array_equal(split.pixels[:, 0].numpy(), arrays[f"{split.name}_images"])
        assert np.array_equal(split.labels.numpy(), arrays[f"{split.name}_labels"])
    full = load_data("fashion-full")
    assert (len(full.train), len(full.test), full.classes) == (60000, 10000, idx.FASHION_CLASSES)


def test_the_full_set_is_read_from_the_folder_named(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFLENS_FASHION_MNIST", str(digits))
    data = load_data("fashion-full")
    assert (len(data.train), data.name, data.classes) == (6, "Fashion-MNIST", idx.FASHION_CLASSES)
    monkeypatch.setenv("DIFFLENS_FASHION_MNIST", str(digits / "none"))
    with pytest.raises(DiffLensError, match=r"DIFFLENS_FASHION_MNIST names .*none"):
        load_data("fashion-full")


def test_the_full_set_that_is_nowhere_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFLENS_FASHION_MNIST", raising=False)
    monkeypatch.setenv("DIFFLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DiffLensError, match=r"apt install dataset-fashion-mnist.*idx:FOLDER"):
        load_data("fashion-full")
    # what an earlier download left is taken, without a network
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 4), ("test", 2)):
        for name, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            (raw / f"{NAMES[split]}-{name}-ubyte").write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    assert len(load_data("fashion-full").train) == 4
