import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FGVCAircraft, Flowers102

from difflens.data.images import read_image
from difflens.data.load import load_data, load_unlabelled
from difflens.data.sources import fine_grained
from difflens.data.sources.fine_grained import FINE_GRAINED, load_fine_grained
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError

savemat = pytest.importorskip("scipy.io").savemat


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFLENS_CACHE", str(tmp_path / "cache"))


def photo(path: Path) -> None:
    """A file with pixels of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), tuple(hashlib.md5(path.name.encode()).digest()[:3])).save(path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def labels(split: ImageSplit) -> list[int]:
    assert split.labels is not None
    assert split.labels.dtype == torch.long
    return split.labels.tolist()


# --- miniatures of the archives ---


def make_aircraft(root: Path) -> Path:
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "707-320", "A340-200", "DC-3")
    write(data / "images_variant_trainval.txt", "0000002 DC-3", "0000001 707-320", "0000003 A340-200")
    write(data / "images_variant_test.txt", "0000004 A340-200")
    for i in range(1, 5):
        photo(data / "images" / f"{i:07d}.jpg")
    return root


def make_cars(root: Path) -> Path:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)

    def annotations(path: Path, rows: Sequence[tuple[str, int]]) -> None:
        array = np.array(
            [(name, number) for name, number in rows], dtype=[("fname", "O"), ("class", np.uint8)]
        )
        savemat(path, {"annotations": array[None]})

    annotations(base / "devkit" / "cars_train_annos.mat", [("00001.jpg", 2), ("00002.jpg", 1)])
    annotations(base / "cars_test_annos_withlabels.mat", [("00001.jpg", 3), ("00002.jpg", 2)])
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "BMW Z4 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names[None]})
    for split in ("cars_train", "cars_test"):
        for i in (1, 2):
            photo(base / split / f"{i:05d}.jpg")
    return root


def make_flowers(root: Path) -> Path:
    base = root / "flowers-102"
    base.mkdir(parents=True)
    savemat(base / "imagelabels.mat", {"labels": np.array([[102, 1, 1, 102, 2, 2]], dtype=np.uint8)})
    # the order of the real splits is not that of the images either
    splits = {"trnid": [[4, 2]], "valid": [[3, 5]], "tstid": [[6, 1]]}
    savemat(base / "setid.mat", {key: np.array(ids, dtype=np.uint16) for key, ids in splits.items()})
    for i in range(1, 7):
        photo(base / "jpg" / f"image_{i:05d}.jpg")
    return root


def make_cub(root: Path) -> Path:
    images = ["002.Albatross/a b.jpg", "001.Auk/x.jpg", "002.Albatross/c.jpg", "001.Auk/y.jpg"]
    write(root / "images.txt", *(f"{i} {path}" for i, path in enumerate(images, 1)))
    write(root / "image_class_labels.txt", "1 2", "2 1", "3 2", "4 1")
    write(root / "train_test_split.txt", "1 1", "2 1", "3 0", "4 0")
    write(root / "classes.txt", "1 001.Auk", "2 002.Albatross")
    for path in images:
        photo(root / "images" / path)
    return root


def make_nabirds(root: Path) -> Path:
    ids = ["0000139e-21dc", "0000d9fc-4e02", "00019306-9d83", "0001afd4-99a1"]
    paths = [
        "0817/0000139e21dc.jpg",
        "0860/0000d9fc4e02.jpg",
        "0900/000193069d83.jpg",
        "0817/0001afd499a1.jpg",
    ]
    write(root / "images.txt", *(f"{i} {path}" for i, path in zip(ids, paths, strict=True)))
    write(root / "image_class_labels.txt", f"{ids[3]} 817", f"{ids[0]} 817", f"{ids[1]} 860", f"{ids[2]} 900")
    write(root / "train_test_split.txt", f"{ids[0]} 1", f"{ids[1]} 1", f"{ids[2]} 1", f"{ids[3]} 0")
    write(
        root / "classes.txt",
        "0 Birds",
        "9 Oak Titmouse",
        "900 Oak Titmouse",
        "817 Oak Titmouse",
        "860 Snowy Owl",
    )
    for path in paths:
        photo(root / "images" / path)
    return root


def dogs_lists(root: Path, train: dict[str, object], test: dict[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split, content in (("train", train), ("test", test)):
        columns = {
            key: np.array(values, dtype=object if key == "file_list" else None).reshape(-1, 1)
            for key, values in content.items()
        }
        savemat(root / f"{split}_list.mat", columns)


DOGS = [
    "n02085620-Chihuahua/n02085620_7.jpg",
    "n02086240-Shih-Tzu/n02086240_1.jpg",
    "n02086240-Shih-Tzu/n02086240_2.jpg",
]


def make_dogs(root: Path) -> Path:
    dogs_lists(
        root, {"file_list": [DOGS[1], DOGS[0]], "labels": [2, 1]}, {"file_list": DOGS[2:], "labels": [2]}
    )
    for path in DOGS:
        photo(root / "Images" / path)
    return root


MAKE = {
    "aircraft": make_aircraft,
    "cars": make_cars,
    "cub": make_cub,
    "dogs": make_dogs,
    "flowers": make_flowers,
    "nabirds": make_nabirds,
}
# the folder of each data set in the cache
PLACES = {"cub": "CUB_200_2011", "nabirds": "nabirds", "dogs": "stanford_dogs"}


@pytest.fixture
def flowers_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the checksums of the real lists; here it knows the miniature's, and goes on
    checking."""

    def make(root: Path) -> Path:
        make_flowers(root)
        known = {"image": ("102flowers.tgz", "")}
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
            known[key] = name, hashlib.md5((root / "flowers-102" / name).read_bytes()).hexdigest()
        monkeypatch.setattr(Flowers102, "_file_dict", known)
        return root

    monkeypatch.setitem(MAKE, "flowers", make)


def check_aircraft(data: ImageData) -> None:
    assert (data.name, data.metric) == ("FGVC-Aircraft", "mean_per_class")
    assert data.classes == ("707-320", "A340-200", "DC-3")
    assert data.train.ids == [f"fgvc-aircraft-2013b/data/images/000000{i}.jpg" for i in (2, 1, 3)]
    assert (labels(data.train), labels(data.test)) == ([2, 0, 1], [1])


def check_cars(data: ImageData) -> None:
    assert (data.name, data.metric) == ("Stanford Cars", "top1")
    assert data.classes[1:] == ("Acura RL Sedan 2012", "BMW Z4 2012")
    assert data.train.ids == [f"stanford_cars/cars_train/0000{i}.jpg" for i in (1, 2)]
    assert data.test.ids == [f"stanford_cars/cars_test/0000{i}.jpg" for i in (1, 2)]
    assert (labels(data.train), labels(data.test)) == ([1, 0], [2, 1])


def check_flowers(data: ImageData) -> None:
    assert (data.name, data.metric, len(data.classes)) == ("Oxford Flowers-102", "mean_per_class", 102)
    assert (data.classes[0], data.classes[101]) == ("pink primrose", "blackberry lily")
    # train, then val
    assert data.train.ids == [f"flowers-102/jpg/image_0000{i}.jpg" for i in (4, 2, 3, 5)]
    assert (labels(data.train), labels(data.test)) == ([101, 0, 0, 1], [1, 101])
    assert data.train.index.tolist() == [0, 1, 2, 3]


def check_cub(data: ImageData) -> None:
    assert (data.name, data.metric) == ("CUB-200-2011", "top1")
    assert data.classes == ("001.Auk", "002.Albatross")
    assert data.train.ids == ["images/002.Albatross/a b.jpg", "images/001.Auk/x.jpg"]
    assert data.test.ids == ["images/002.Albatross/c.jpg", "images/001.Auk/y.jpg"]
    assert (labels(data.train), labels(data.test)) == ([1, 0], [1, 0])


def check_nabirds(data: ImageData) -> None:
    assert (data.name, data.metric) == ("NABirds", "top1")
    # 0 and 9 have no images
    assert data.classes == ("Oak Titmouse (817)", "Snowy Owl", "Oak Titmouse (900)")
    assert (labels(data.train), labels(data.test)) == ([0, 1, 2], [0])
    assert data.test.ids == ["images/0817/0001afd499a1.jpg"]


def check_dogs(data: ImageData) -> None:
    assert (data.name, data.metric) == ("Stanford Dogs", "top1")
    assert data.classes == ("Chihuahua", "Shih-Tzu")
    assert data.train.ids == [f"Images/{DOGS[1]}", f"Images/{DOGS[0]}"]
    assert (labels(data.train), labels(data.test)) == ([1, 0], [1])


CHECK = {
    "aircraft": check_aircraft,
    "cars": check_cars,
    "cub": check_cub,
    "dogs": check_dogs,
    "flowers": check_flowers,
    "nabirds": check_nabirds,
}


@pytest.mark.usefixtures("flowers_checksums")
@pytest.mark.parametrize("name", FINE_GRAINED)
@pytest.mark.parametrize("given", ["folder", "cache"])
def test_a_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str) -> None:
    if given == "folder":
        root = MAKE[name](tmp_path / "here")
        spec = f"{name}:{root}"
    else:
        root = MAKE[name](tmp_path / "cache" / PLACES.get(name, ""))
        spec = name
    # labels have to come from the lists: no image is opened
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        data = load_data(spec)
    assert data.spec == spec
    CHECK[name](data)
    for split in (data.train, data.test):
        for i, identity in enumerate(split.ids):
            assert torch.equal(split.image(i), read_image(root / identity))


@pytest.mark.usefixtures("flowers_checksums")
@pytest.mark.parametrize("name", FINE_GRAINED)
def test_labels_can_be_left_out(tmp_path: Path, name: str) -> None:
    root = MAKE[name](tmp_path / "here")
    labelled = load_data(f"{name}:{root}")
    data = load_data(f"{name}:{root}", labels=False)
    assert (data.classes, data.train.labels, data.test.labels) == ((), None, None)
    assert (data.train.ids, data.test.ids) == (labelled.train.ids, labelled.test.ids)
    split = load_unlabelled(f"{name}:{root}")
    assert (split.ids, split.labels) == (labelled.train.ids, None)


def test_birds_without_labels_need_no_lists_of_classes(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    for name in ("classes.txt", "image_class_labels.txt"):
        (root / name).unlink()
    assert len(load_unlabelled(f"cub:{root}")) == 2


def test_the_lists_of_dogs_may_lie_in_a_folder(tmp_path: Path) -> None:
    root = make_dogs(tmp_path)
    (root / "lists").mkdir()
    for split in ("train", "test"):
        (root / f"{split}_list.mat").rename(root / "lists" / f"{split}_list.mat")
    check_dogs(load_data(f"dogs:{root}"))


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        photo(tmp_path / "dogs" / split / "rex" / "1.png")
    make_dogs(tmp_path / "cache" / "stanford_dogs")
    monkeypatch.chdir(tmp_path)
    assert load_data("dogs").classes == ("Chihuahua", "Shih-Tzu")
    assert load_data("folder:dogs").classes == ("rex",)
    assert load_data("./dogs").classes == ("rex",)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_aircraft(tmp_path / "planes")
    monkeypatch.setenv("HOME", str(tmp_path))
    check_aircraft(load_data("aircraft:~/planes"))


def test_relative_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_cars(make_cub(make_aircraft(tmp_path))))
    for name in ("aircraft", "cars", "cub"):
        CHECK[name](load_data(f"{name}:."))


@pytest.mark.usefixtures("flowers_checksums")
def test_torchvisions_own_names_report_the_same_metric(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name in ("aircraft", "cars", "flowers"):
        MAKE[name](root)
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "images_variant_train.txt", "0000001 707-320", "0000003 A340-200")
    pets = root / "oxford-iiit-pet"
    for split in ("trainval", "test"):
        write(pets / "annotations" / f"{split}.txt", "Abyssinian_1 1 1 1", "beagle_1 2 2 1")
    for cat_or_dog in ("Abyssinian", "beagle"):
        photo(pets / "images" / f"{cat_or_dog}_1.jpg")
    for name in ("FGVCAircraft", "Flowers102", "OxfordIIITPet"):
        assert load_data(f"torchvision:{name}").metric == "mean_per_class"
    assert load_data("torchvision:stanfordcars").metric == "top1"


# --- damaged data ---


def message(spec: str, labels: bool = True) -> str:
    with pytest.raises(DiffLensError) as caught:
        load_data(spec, labels)
    return str(caught.value)


@pytest.mark.parametrize("name", ["cub", "dogs", "nabirds", "cars"])
def test_files_that_are_nowhere_are_explained(tmp_path: Path, name: str) -> None:
    for spec in (name, f"{name}:{tmp_path}"):
        text = message(spec)
        assert f"{name}:FOLDER takes a folder with " in text
        assert f"{name} alone looks in {tmp_path / 'cache' / PLACES.get(name, '')}" in text
    assert f"no such folder: {tmp_path}/none; {name}:FOLDER takes" in message(f"{name}:{tmp_path}/none")


def test_cars_cannot_be_downloaded_and_the_message_says_where_they_go() -> None:
    text = message("cars")
    assert "torchvision can no longer download it" in text
    for file in ("cars_test_annos_withlabels.mat", "devkit/cars_meta.mat", "cars_train/"):
        assert f"stanford_cars/{file}" in text


def test_a_download_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FGVCAircraft, "_URL", "http://127.0.0.1:9/aircraft.tar.gz")
    monkeypatch.setattr(Flowers102, "_download_url_prefix", "http://127.0.0.1:9/")
    text = message("aircraft")
    assert "FGVCAircraft could not be loaded" in text
    assert "takes a folder with fgvc-aircraft-2013b/" in text
    assert "flowers-102/setid.mat" in message("flowers")


def test_a_given_folder_is_never_downloaded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (FGVCAircraft, Flowers102):
        monkeypatch.setattr(make, "_download" if make is FGVCAircraft else "download", None)
    for name in ("aircraft", "flowers"):
        assert "Dataset not found" in message(f"{name}:{tmp_path}")
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("flowers_checksums")
def test_damaged_lists_of_flowers_are_noticed(tmp_path: Path) -> None:
    root = MAKE["flowers"](tmp_path)
    path = root / "flowers-102" / "setid.mat"
    path.write_bytes(path.read_bytes()[:-1])
    assert "Dataset not found or corrupted" in message(f"flowers:{root}")


def test_a_missing_list_or_an_unknown_variant_of_aircraft(tmp_path: Path) -> None:
    root = make_aircraft(tmp_path)
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "images_variant_test.txt", "0000004 Concorde")
    assert "FGVCAircraft could not be loaded: KeyError: 'Concorde'; aircraft:FOLDER" in message(
        f"aircraft:{root}"
    )
    (data / "images_variant_test.txt").unlink()
    assert "images_variant_test.txt" in message(f"aircraft:{root}")


def test_more_cars_than_names(tmp_path: Path) -> None:
    root = make_cars(tmp_path)
    names = np.array([["Hummer", "Acura"]], dtype=object)
    savemat(root / "stanford_cars" / "devkit" / "cars_meta.mat", {"class_names": names})
    assert "has 2 classes, but test labels up to 3" in message(f"cars:{root}")


@pytest.mark.parametrize("name", ["cars", "dogs", "flowers"])
def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = MAKE[name](tmp_path / "here")
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    assert 'pip install "difflens[transfer]"' in message(f"{name}:{root}")


@pytest.mark.usefixtures("flowers_checksums")
@pytest.mark.parametrize(
    ("name", "image", "source"),
    [
        (
            "aircraft",
            "fgvc-aircraft-2013b/data/images/0000003.jpg",
            "the list of the split trainval of FGVCAircraft",
        ),
        ("cars", "stanford_cars/cars_test/00002.jpg", "the list of the split test of StanfordCars"),
        ("flowers", "flowers-102/jpg/image_00005.jpg", "the list of the split val of Flowers102"),
        ("cub", "images/001.Auk/y.jpg", "images.txt"),
        ("nabirds", "images/0860/0000d9fc4e02.jpg", "images.txt"),
        ("dogs", f"Images/{DOGS[2]}", "test_list.mat"),
    ],
)
def test_an_image_that_is_not_there_is_named(tmp_path: Path, name: str, image: str, source: str) -> None:
    root = MAKE[name](tmp_path / "here")
    (root / image).unlink()
    text = message(f"{name}:{root}")
    assert source in text
    assert f"1 of which are not in {root}: {image}" in text


@pytest.mark.parametrize(
    ("file", "lines", "expected"),
    [
        ("images.txt", None, ["cannot read", "images.txt", "No such file", "cub:FOLDER takes"]),
        ("train_test_split.txt", None, ["cannot read", "train_test_split.txt"]),
        ("image_class_labels.txt", None, ["cannot read", "image_class_labels.txt"]),
        ("classes.txt", None, ["cannot read", "classes.txt"]),
        ("images.txt", ["1 a.jpg", "", "2"], ["images.txt, line 3: expected ID PATH, found '2'"]),
        ("images.txt", ["1 a.jpg", "1 b.jpg"], ["images.txt, line 2: 1 has a line already"]),
        (
            "train_test_split.txt",
            ["1 1", "2 yes"],
            ["train_test_split.txt, line 2: expected ID 1 (train) or ID 0 (test), found '2 yes'"],
        ),
        (
            "train_test_split.txt",
            ["1 1", "2 1", "4 0"],
            ["train_test_split.txt has no line for the image 3 (002.Albatross/c.jpg)"],
        ),
        (
            "train_test_split.txt",
            ["1 1", "2 1", "3 0", "4 0", "5 0"],
            ["images.txt beside", "train_test_split.txt has no line for the image 5"],
        ),
        ("train_test_split.txt", ["1 1", "2 1", "3 1", "4 1"], ["images.txt names no test images"]),
        ("train_test_split.txt", ["1 0", "2 0", "3 0", "4 0"], ["images.txt names no train images"]),
        (
            "image_class_labels.txt",
            ["1 2", "3 2"],
            ["image_class_labels.txt has no line for the image 2 (001.Auk/x.jpg), 4 (001.Auk/y.jpg)"],
        ),
        ("image_class_labels.txt", ["1 -2"], ["line 1: expected ID CLASS, found '1 -2'"]),
        ("classes.txt", ["2 002.Albatross"], ["classes.txt does not name the class 1"]),
        ("classes.txt", ["one 001.Auk"], ["classes.txt, line 1: expected CLASS NAME, found 'one 001.Auk'"]),
    ],
)
def test_wrong_lists_of_birds_are_explained(
    tmp_path: Path, file: str, lines: list[str] | None, expected: list[str]
) -> None:
    root = make_cub(tmp_path)
    if lines is None:
        (root / file).unlink()
    else:
        write(root / file, *lines)
    text = message(f"cub:{root}")
    assert all(part in text for part in expected), text


def test_a_list_that_is_not_text(tmp_path: Path) -> None:
    root = make_cub(tmp_path)
    (root / "classes.txt").write_bytes(b"1 \xff\xfe")
    assert "classes.txt, line 1: not a text file in UTF-8" in message(f"cub:{root}")


TEST: dict[str, object] = {"file_list": DOGS[2:], "labels": [2]}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"labels": [1]}, "train_list.mat has no variable file_list; it has labels"),
        ({"file_list": DOGS[:1]}, "train_list.mat has no variable labels; it has file_list"),
        ({"file_list": DOGS[:2], "labels": [1]}, "has 2 entries in file_list but 1 label"),
        (
            {"file_list": DOGS[:2], "labels": [1, 0]},
            f"entry 2 ({DOGS[1]}): its label is 0; labels are whole numbers",
        ),
        ({"file_list": DOGS[:1], "labels": [1.5]}, "its label is 1.5"),
        ({"file_list": DOGS[:1], "labels": [float("nan")]}, "its label is nan"),
        (
            {"file_list": DOGS[:2], "labels": [1, 1]},
            f"entry 2 ({DOGS[1]}): its label 1 is that of the folder n02085620-Chihuahua",
        ),
        ({"file_list": [], "labels": []}, "train_list.mat names no train images"),
    ],
)
def test_wrong_lists_of_dogs_are_explained(tmp_path: Path, train: dict[str, object], expected: str) -> None:
    root = make_dogs(tmp_path)
    dogs_lists(root, train, TEST)
    assert expected in message(f"dogs:{root}")


def test_labels_of_dogs_may_be_floating_point(tmp_path: Path) -> None:
    root = make_dogs(tmp_path)
    dogs_lists(root, {"file_list": [DOGS[1], DOGS[0]], "labels": [2.0, 1.0]}, TEST)
    check_dogs(load_data(f"dogs:{root}"))


def test_damaged_and_missing_lists_of_dogs(tmp_path: Path) -> None:
    root = make_dogs(tmp_path)
    (root / "test_list.mat").write_bytes(b"MATLAB 5.0 MAT-file, and nothing more")
    assert "test_list.mat is not a MATLAB file that scipy reads" in message(f"dogs:{root}")
    (root / "test_list.mat").unlink()
    assert "test_list.mat: No such file or directory; dogs:FOLDER takes" in message(f"dogs:{root}")


def test_names_near_and_unknown() -> None:
    assert "did you mean flowers?" in message("flower")
    assert "'cub:' names no data set" in message("cub:")
    with pytest.raises(DiffLensError, match="no fine-grained data set 'cats'; there are aircraft, cars"):
        load_fine_grained("cats", None, "cats")
    assert fine_grained.FINE_GRAINED == ("aircraft", "cars", "cub", "dogs", "flowers", "nabirds")
