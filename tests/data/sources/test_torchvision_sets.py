from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from difflens.data.images import from_pil
from difflens.data.load import load_data, load_unlabelled
from difflens.data.sources.torchvision_sets import class_names
from difflens.errors import DiffLensError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFLENS_CACHE", str(tmp_path))


@pytest.fixture
def small_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torchvision.datasets.FakeData.__init__

    def init(self: object, size: int = 60, image_size: tuple[int, int, int] = (3, 16, 16)) -> None:
        make(self, size, image_size, num_classes=4)

    monkeypatch.setattr(torchvision.datasets.FakeData, "__init__", init)


@pytest.mark.usefixtures("small_fake")
@pytest.mark.parametrize("name", ["FakeData", "fakedata"])
def test_a_set_without_splits_is_split_class_by_class(name: str) -> None:
    data = load_data(f"torchvision:{name}")
    assert (data.name, data.classes) == ("FakeData", ("0", "1", "2", "3"))
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert len(data.train) + len(data.test) == 60
    every = data.train.labels.bincount() + data.test.labels.bincount()
    assert data.test.labels.bincount().tolist() == (every // 5).tolist()
    assert not set(data.train.index.tolist()) & set(data.test.index.tolist())
    image, label = torchvision.datasets.FakeData()[int(data.test.index[1])]
    assert torch.equal(data.test.image(1), from_pil(image))
    assert int(data.test.labels[1]) == int(label)


@pytest.mark.usefixtures("small_fake")
def test_unlabelled_leaves_out_the_same_images() -> None:
    split, data = load_unlabelled("torchvision:FakeData"), load_data("torchvision:FakeData")
    assert (split.ids, split.labels) == (data.train.ids, None)
    bare = load_data("torchvision:FakeData", labels=False)
    assert (bare.classes, bare.test.labels, bare.test.ids) == ((), None, data.test.ids)


def mnist_files(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 8), ("t10k", 4)):
        for name, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            values = np.random.default_rng(count).integers(0, 10, shape, dtype=np.uint8)
            sizes = b"".join(size.to_bytes(4, "big") for size in shape)
            (raw / f"{split}-{name}-ubyte").write_bytes(
                bytes((0, 0, 8, len(shape))) + sizes + values.tobytes()
            )


def test_train_flags_and_images_in_memory(tmp_path: Path) -> None:
    mnist_files(tmp_path)
    data = load_data("torchvision:mnist")
    direct = torchvision.datasets.MNIST(tmp_path, train=False)
    assert (data.name, data.classes[0]) == ("MNIST", "0 - zero")
    assert data.test.pixels is not None
    assert data.test.labels is not None
    assert torch.equal(data.test.pixels[:, 0], direct.data)
    assert torch.equal(data.test.labels, direct.targets)
    assert len(data.train) == 8


def test_a_test_split_with_secret_labels_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fer2013").mkdir()
    pixels = " ".join(["7"] * 48 * 48)
    rows = "".join(f"{i % 2},{pixels}\n" for i in range(20))
    (tmp_path / "fer2013" / "train.csv").write_text("emotion,pixels\n" + rows)
    (tmp_path / "fer2013" / "test.csv").write_text(f"pixels\n{pixels}\n")
    # torchvision knows the checksums of the real files
    monkeypatch.setattr(torchvision.datasets.fer2013, "check_integrity", lambda *_, **__: True)
    data = load_data("torchvision:FER2013")
    assert (len(data.train), len(data.test), data.classes) == (16, 4, ("0", "1"))
    assert data.test.index.tolist() == [8, 9, 18, 19]
    assert data.train.image(0).shape == (1, 48, 48)


def test_a_set_with_train_and_val_only(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in torchvision.datasets.Imagenette._WNID_TO_CLASS:
            folder = tmp_path / "imagenette2-160" / split / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.JPEG")
    (tmp_path / "imagenette2").symlink_to(tmp_path / "imagenette2-160")
    data = load_data("torchvision:Imagenette")
    assert (len(data.train), len(data.test), data.classes[0]) == (10, 10, "tench")
    assert data.test.labels is not None
    assert data.test.labels.tolist() == list(range(10))


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(DiffLensError, match=r"no data set 'CIFAR11'; did you mean .*CIFAR10"):
        load_data("torchvision:CIFAR11")
    with pytest.raises(DiffLensError, match=r"no data set 'zzz'; it has .*CIFAR10, CIFAR100"):
        load_data("torchvision:zzz")


def test_a_download_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DiffLensError, match="KMNIST could not be loaded"):
        load_data("torchvision:KMNIST")


def test_a_set_for_another_task_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("a\n")
    Image.new("RGB", (8, 8)).save(folder / "JPEGImages" / "a.jpg")
    (folder / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>cat</name></object></annotation>"
    )
    voc = torchvision.datasets.VOCDetection
    make = voc.__init__
    voc.__init__ = lambda self, root, image_set="train": make(self, root, image_set=image_set)
    try:
        with pytest.raises(DiffLensError, match="VOCDetection is not a classification data set"):
            load_data("torchvision:VOCDetection")
        assert load_unlabelled("torchvision:VOCDetection").image(0).shape == (3, 8, 8)
        assert len(load_data("torchvision:VOCDetection", labels=False).test) == 1
    finally:
        voc.__init__ = make


def test_classes_of_one_name_get_their_numbers() -> None:
    """ImageNet has two cranes."""
    dataset = SimpleNamespace(classes=[("crane", "bird"), ("kite",), ("crane", "machine")])
    assert class_names(dataset) == ("crane (0)", "kite", "crane (2)")
