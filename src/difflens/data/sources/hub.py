"""Data sets of the Hugging Face hub, and folders that the library `datasets` reads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflens.data.split import ImageData, ImageSplit, LibrarySplit, hold_out
from difflens.errors import DiffLensError, expanded, listing
from difflens.run.reading import check_files


def load_hub(name: str, spec: str, labels: bool = True) -> ImageData:
    """Load a Hugging Face data set.

    Columns are chosen by their types. Images: "image" or "img", else the only column of images. Labels:
    "label", "labels" or "fine_label", else the only column of class labels; or a column "label" of numbers
    or words. The test split is the first of test and validation that has all its labels. Without such a
    split, the training split is split 4 : 1, class by class.

    Args:
        name: ID, ID:CONFIG, or a local folder that `datasets` reads.

    Raises:
        DiffLensError: `datasets` is not installed, or the data set cannot be loaded or has no images or
            labels, or several columns of them without one of these names.
    """
    splits = _hub_splits(name)
    train, classes = _hub_train(name, splits, labels)
    for key in ("test", "validation", "valid", "val"):
        if key in splits:
            test = _hub_split(name, "test", splits[key], classes)
            if not labels or (test.labels is not None and int(test.labels.min()) >= 0):
                return ImageData(spec, name, classes, train, test)
    train, test = hold_out(train)
    return ImageData(spec, name, classes, train, test)


def load_hub_unlabelled(name: str) -> ImageSplit:
    """Load the training images of a Hugging Face data set, without labels; `name` as for `load_hub`."""
    return _hub_train(name, _hub_splits(name), labels=False)[0]


def _hub_splits(name: str) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise DiffLensError("Hugging Face data sets need `pip install difflens[hub]`") from error
    path = expanded(name)
    if path.is_dir():
        for folder in (path, *filter(Path.is_dir, path.rglob("*"))):
            check_files(folder)
    try:
        if (path / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(path)))
        if path.is_dir():
            return dict(datasets.load_dataset(str(path)))
        identity, _, config = name.partition(":")
        return dict(datasets.load_dataset(identity, config or None))
    except Exception as error:  # network, an unknown id, a missing configuration, damaged files
        raise DiffLensError(f"the Hugging Face data set {name!r} could not be loaded: {error}") from error


def _hub_train(name: str, splits: dict[str, Any], labels: bool) -> tuple[ImageSplit, tuple[str, ...]]:
    if "train" not in splits:
        raise DiffLensError(
            f"the Hugging Face data set {name!r} has no split train; it has {listing([*splits])}"
        )
    classes = _hub_classes(name, splits["train"]) if labels else ()
    train = _hub_split(name, "train", splits["train"], classes)
    if train.labels is not None and int(train.labels.min()) < 0:
        raise DiffLensError(f"the Hugging Face data set {name!r} has training images without labels")
    return train, classes


def _hub_split(name: str, split: str, dataset: Any, classes: tuple[str, ...]) -> ImageSplit:
    """Return a split with labels that count `classes`, -1 for secret ones; without labels if there are no
    classes."""
    import datasets

    images = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DiffLensError(
            f"the Hugging Face data set {name!r} has no column of images; {_columns(dataset)}"
        )
    key = _chosen(name, "images", images, ("image", "img"))
    targets = _hub_labels(name, dataset, classes) if classes else None
    # undecoded, so that all images go through the same decoder
    undecoded = dataset.select_columns([key]).cast_column(key, datasets.Image(decode=False))
    return LibrarySplit(split, undecoded, key, targets)


def _hub_classes(name: str, dataset: Any) -> tuple[str, ...]:
    column = _label_column(name, dataset)
    names = getattr(dataset.features[column], "names", None)
    return tuple(names or map(str, sorted({value for value in dataset[column] if value not in (None, -1)})))


def _hub_labels(name: str, dataset: Any, classes: tuple[str, ...]) -> Tensor:
    column = _label_column(name, dataset)
    # each split has its own order of names
    names = getattr(dataset.features[column], "names", None)
    secret = (None, -1)
    titles = [None if value in secret else names[value] if names else str(value) for value in dataset[column]]
    number: dict[str | None, int] = {None: -1} | {title: i for i, title in enumerate(classes)}
    unknown = sorted(str(title) for title in {*titles} - {*number})
    if unknown:
        raise DiffLensError(
            f"the Hugging Face data set {name!r} has labels that its training split lacks: {listing(unknown)}"
        )
    return torch.tensor([number[title] for title in titles])


def _label_column(name: str, dataset: Any) -> str:
    import datasets

    columns = [key for key, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    if columns:
        return _chosen(name, "class labels", columns, ("label", "labels", "fine_label"))
    dtype = str(getattr(dataset.features.get("label"), "dtype", ""))
    if not dtype.startswith(("int", "uint", "string", "bool")):
        raise DiffLensError(
            f"the Hugging Face data set {name!r} has no column of class labels; {_columns(dataset)}"
        )
    return "label"


def _chosen(name: str, what: str, columns: list[str], usual: tuple[str, ...]) -> str:
    """Return the column with a usual name, or the only one."""
    chosen = [key for key in usual if key in columns]
    if not chosen and len(columns) > 1:
        raise DiffLensError(
            f"the Hugging Face data set {name!r} has {what} in the columns {listing(columns)}; rename the "
            f"one that is meant to {usual[0]}"
        )
    return [*chosen, *columns][0]


def _columns(dataset: Any) -> str:
    columns = [f"{key} ({type(feature).__name__})" for key, feature in dataset.features.items()]
    return f"its columns are {listing(columns)}"
