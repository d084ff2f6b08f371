"""Data sets of fine-grained classes: FGVC-Aircraft, Stanford Cars and Dogs, CUB-200-2011, Flowers-102,
NABirds."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision

from difflens.data.files import cache_folder, read_lines, require_regular
from difflens.data.sources.torchvision_sets import class_names, instantiate
from difflens.data.split import FileSplit, ImageData, ImageSplit, JoinedSplit, Metric
from difflens.errors import DiffLensError, counted, expanded, listing


@dataclass(frozen=True)
class _Source:
    """A data set: its title, its page, and its files."""

    title: str
    page: str
    layout: str
    """The files that its folder must contain."""
    folder: str = ""
    """The folder below `cache_folder()` in which they are looked up."""
    metric: Metric = "top1"


_BIRDS = "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/"
_SOURCES = {
    "aircraft": _Source(
        "FGVC-Aircraft",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        "fgvc-aircraft-2013b/ as its archive unpacks",
        metric="mean_per_class",
    ),
    "cars": _Source(
        "Stanford Cars",
        "copies of it: its own page is gone, and torchvision can no longer download it",
        "stanford_cars/cars_train/, stanford_cars/cars_test/, stanford_cars/cars_test_annos_withlabels.mat, "
        "stanford_cars/devkit/cars_train_annos.mat and stanford_cars/devkit/cars_meta.mat",
    ),
    "cub": _Source(
        "CUB-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011",
        _BIRDS,
        "CUB_200_2011",
    ),
    "dogs": _Source(
        "Stanford Dogs",
        "http://vision.stanford.edu/aditya86/ImageNetDogs",
        "Images/, train_list.mat and test_list.mat (these two may lie in lists/)",
        "stanford_dogs",
    ),
    "flowers": _Source(
        "Oxford Flowers-102",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "flowers-102/jpg/, flowers-102/imagelabels.mat and flowers-102/setid.mat",
        metric="mean_per_class",
    ),
    "nabirds": _Source("NABirds", "https://dl.allaboutbirds.org/nabirds", _BIRDS, "nabirds"),
}
FINE_GRAINED = tuple(_SOURCES)
"""The names of the fine-grained data sets."""

# torchvision's class, and the splits that are joined to the training split
_TORCHVISION = {
    "aircraft": ("FGVCAircraft", ("trainval",)),
    "cars": ("StanfordCars", ("train",)),
    "flowers": ("Flowers102", ("train", "val")),
}

_Parts = tuple[tuple[str, ...], ImageSplit, ImageSplit]


class _Listed(NamedTuple):
    """The images of a split: the list they come from, paths relative to the root, and their class numbers or
    None."""

    source: str
    ids: list[str]
    numbers: list[int] | None


def load_fine_grained(name: str, root: Path | None, spec: str, labels: bool = True) -> ImageData:
    """Load a fine-grained data set with the splits that the field uses.

    Args:
        name: one of `FINE_GRAINED`. The training splits of aircraft (variants) and flowers are train and val
            joined.
        root: for aircraft, cars and flowers the root of torchvision; for cub, nabirds and dogs the folder
            that their archives unpack to. None: aircraft and flowers are downloaded into `cache_folder()`;
            the others must be in it (CUB_200_2011/, nabirds/, stanford_dogs/ and stanford_cars/).
        labels: False loads images without labels and classes.

    Returns:
        Splits whose ids are paths relative to the root. Labels are in the order of the data set's own class
        numbers, counted from 0 over the classes that have images.

    Raises:
        DiffLensError: the data set is missing and cannot be downloaded, a list is missing, damaged or
            contradicts another, an image is missing, or scipy is not installed, which cars, dogs and flowers
            need.
    """
    if name not in _SOURCES:
        raise DiffLensError(f"no fine-grained data set {name!r}; there are {', '.join(FINE_GRAINED)}")
    source = _SOURCES[name]
    folder = cache_folder() / source.folder if root is None else expanded(root)
    if root is not None and not folder.is_dir():
        raise DiffLensError(f"no such folder: {folder}; {_expected(name)}")
    try:
        if name in _TORCHVISION:
            parts = _read_torchvision(name, folder, root is None, labels)
        else:
            parts = (_read_dogs if name == "dogs" else _read_birds)(folder, labels)
    except OSError as error:
        reason = f"cannot read {error.filename}: {error.strerror}"
        raise DiffLensError(f"{source.title}: {reason}; {_expected(name)}") from error
    return ImageData(spec, source.title, *parts, metric=source.metric)


def _expected(name: str) -> str:
    source = _SOURCES[name]
    does = "downloads into" if name in ("aircraft", "flowers") else "looks in"
    return (
        f"{name}:FOLDER takes a folder with {source.layout}; {name} alone {does} "
        f"{cache_folder() / source.folder}. The files come from {source.page}"
    )


def _read_torchvision(name: str, folder: Path, download: bool, labels: bool) -> _Parts:
    if name != "aircraft":
        _loadmat()  # torchvision's own message would not name the extra `transfer`
    title, training = _TORCHVISION[name]
    make = getattr(torchvision.datasets, title)
    splits: list[ImageSplit] = []
    for split in (*training, "test"):
        try:
            dataset = instantiate(make, title, [{"split": split}], root=None if download else folder)
        except DiffLensError as error:
            raise DiffLensError(f"{str(error).rstrip('.')}; {_expected(name)}") from error
        # the lists behind the items: the items themselves would decode each image
        samples = getattr(dataset, "_samples", None)
        samples = samples or zip(dataset._image_files, dataset._labels, strict=True)
        paths, targets = zip(*samples, strict=True) if len(dataset) else ((), ())
        ids = [Path(path).relative_to(folder).as_posix() for path in paths]
        numbers = [int(target) for target in targets]
        classes = class_names(dataset)
        if numbers and max(numbers) >= len(classes):
            raise DiffLensError(
                f"{title} in {folder} has {counted(len(classes), 'class')}, but {split} labels up to "
                f"{max(numbers) + 1}"
            )
        source = f"the list of the split {split} of {title}"
        splits.append(_files(split, folder, ids, numbers if labels else None, source))
    *parts, test = splits
    return classes if labels else (), JoinedSplit("train", parts), test


def _read_birds(root: Path, labels: bool) -> _Parts:
    """Read CUB-200-2011 or NABirds, whose lists have the same form."""
    source = root / "images.txt"
    images = _table(source, r"(\S+)\s+(\S.*)", "ID PATH")
    split_file = root / "train_test_split.txt"
    training = _table_by_image(images, split_file, r"(\S+)\s+([01])", "ID 1 (train) or ID 0 (test)")
    numbers: dict[str, str] = {}
    names: dict[int, str] = {}
    if labels:
        numbers = _table_by_image(images, root / "image_class_labels.txt", r"(\S+)\s+([0-9]+)", "ID CLASS")
        # NABirds also names the inner nodes of its hierarchy, which have no images
        named = _table(root / "classes.txt", r"([0-9]+)\s+(\S.*)", "CLASS NAME")
        names = {int(number): name for number, name in named.items()}
        unnamed = sorted({int(number) for number in numbers.values()} - {*names})
        if unnamed:
            raise DiffLensError(
                f"{root / 'classes.txt'} does not name the class {listing(unnamed)} of image_class_labels.txt"
            )

    def listed(flag: str) -> _Listed:
        keys = [key for key in images if training[key] == flag]
        targets = [int(numbers[key]) for key in keys] if labels else None
        return _Listed(str(source), [f"images/{images[key]}" for key in keys], targets)

    return _assemble(root, listed("1"), listed("0"), names)


def _read_dogs(root: Path, labels: bool) -> _Parts:
    names: dict[int, str] = {}
    train, test = (_dogs_listed(root, f"{split}_list.mat", labels, names) for split in ("train", "test"))
    # a folder such as n02085620-Chihuahua is WordNet's number and the name
    names = {number: folder.partition("-")[2] or folder for number, folder in names.items()}
    return _assemble(root, train, test, names)


def _dogs_listed(root: Path, file: str, labels: bool, names: dict[int, str]) -> _Listed:
    """Read the list of a split of Stanford Dogs; `names` receives the folder of each class number."""
    path = next((path for path in (root / file, root / "lists" / file) if path.is_file()), root / file)
    content = _read_mat(path)
    images = [str(image).strip() for image in _column(path, content, "file_list")]
    ids = [f"Images/{image}" for image in images]
    if not labels:
        return _Listed(str(path), ids, None)
    targets = _column(path, content, "labels")
    if len(targets) != len(images):
        raise DiffLensError(
            f"{path} has {counted(len(images), 'entry')} in file_list but {counted(len(targets), 'label')}"
        )
    numbers: list[int] = []
    for entry, (image, label) in enumerate(zip(images, targets, strict=True), 1):
        where = f"{path}, entry {entry} ({image})"
        if not isinstance(label, int | float) or not label >= 1 or label % 1:
            raise DiffLensError(f"{where}: its label is {label!r}; labels are whole numbers from 1")
        number, folder = int(label), image.partition("/")[0]
        if names.setdefault(number, folder) != folder:
            raise DiffLensError(f"{where}: its label {number} is that of the folder {names[number]}")
        numbers.append(number)
    return _Listed(str(path), ids, numbers)


def _assemble(root: Path, train: _Listed, test: _Listed, names: dict[int, str]) -> _Parts:
    """Return classes in the order of their numbers, and the splits; classes of the same name get their
    number."""
    used = sorted({*(train.numbers or ()), *(test.numbers or ())})
    position = {number: i for i, number in enumerate(used)}
    shared = Counter(names[number] for number in used)
    classes = tuple(
        names[number] if shared[names[number]] == 1 else f"{names[number]} ({number})" for number in used
    )

    def split(name: str, listed: _Listed) -> FileSplit:
        targets = None if listed.numbers is None else [position[number] for number in listed.numbers]
        return _files(name, root, listed.ids, targets, listed.source)

    return classes, split("train", train), split("test", test)


def _files(name: str, root: Path, ids: list[str], labels: list[int] | None, source: str) -> FileSplit:
    if not ids:
        raise DiffLensError(f"{source} names no {name} images")
    missing = [name for name in ids if not (root / name).is_file()]
    if missing:
        raise DiffLensError(
            f"{source} names {len(ids)} {name} images, {len(missing)} of which are not in {root}: "
            f"{listing(missing)}"
        )
    return FileSplit(name, ids, None if labels is None else torch.tensor(labels), root)


def _table(path: Path, form: str, words: str) -> dict[str, str]:
    """Return the keys and values of a text file's lines.

    Args:
        form: a regular expression of a line, with a group for the key and one for the value.
        words: the form of a line, for messages.
    """
    rows: dict[str, str] = {}
    path.stat()  # a missing file is explained by the caller
    for number, line in enumerate(read_lines(path, words), 1):
        if not line:
            continue
        match = re.fullmatch(form, line)
        if match is None:
            raise DiffLensError(f"{path}, line {number}: expected {words}, found {line[:80]!r}")
        key, value = match.groups()
        if key in rows:
            raise DiffLensError(f"{path}, line {number}: {key} has a line already")
        rows[key] = value
    return rows


def _table_by_image(images: dict[str, str], path: Path, form: str, words: str) -> dict[str, str]:
    """Return the `_table` of a file that must have one line for each image of images.txt."""
    rows = _table(path, form, words)
    unlisted = [f"{key} ({images[key]})" for key in images if key not in rows]
    unknown = [key for key in rows if key not in images]
    for problem, keys in (
        (f"{path} has no line for the image", unlisted),
        (f"images.txt beside {path} has no line for the image", unknown),
    ):
        if keys:
            raise DiffLensError(f"{problem} {listing(keys)}; every image has one line in both files")
    return rows


def _read_mat(path: Path) -> dict[str, Any]:
    loadmat = _loadmat()
    require_regular(path, "a MATLAB file")
    with path.open("rb") as file:
        try:
            return dict(loadmat(file, squeeze_me=True))
        except Exception as error:  # damaged bytes make scipy raise nearly anything
            raise DiffLensError(f"{path} is not a MATLAB file that scipy reads: {error}") from error


def _column(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    if key not in content:
        there = listing([name for name in content if not name.startswith("__")])
        raise DiffLensError(f"{path} has no variable {key}; it has {there or 'none'}")
    return list(np.ravel(content[key]).tolist())


def _loadmat() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DiffLensError(
            'cars, dogs and flowers have lists in MATLAB files, which need `pip install "difflens[transfer]"`'
        ) from error
    return loadmat
