"""Data sets of torchvision by the name of their class."""

import difflib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from difflens.data.files import cache_folder
from difflens.data.images import from_pil
from difflens.data.split import ImageData, ImageSplit, LibrarySplit, MemorySplit, Metric, hold_out
from difflens.errors import DiffLensError, listing

# arguments of (training split, test split) that torchvision's signatures do not show
_SPECIAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CLEVRClassification": ({"split": "train"}, {"split": "val"}),  # its test labels are secret
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "INaturalist": ({"version": "2021_train"}, {"version": "2021_valid"}),
    "Places365": ({"split": "train-standard", "small": True}, {"split": "val", "small": True}),
}
_NOT_BY_NAME = ("DatasetFolder", "ImageFolder", "VisionDataset")
# classes that have a parameter `download` and refuse it: their files must exist
_NO_DOWNLOAD = ("ImageNet", "StanfordCars")
# data sets on which the field reports the mean accuracy of the classes; it reports top-1 on all others
_MEAN_PER_CLASS = ("Caltech101", "FGVCAircraft", "Flowers102", "OxfordIIITPet")


def load_torchvision(name: str, spec: str, labels: bool = True) -> ImageData:
    """Load a torchvision data set, which is downloaded into `cache_folder()` if necessary.

    A data set without a test split, or without its labels, is split 4 : 1, class by class.

    Args:
        name: the name of torchvision's class, in upper or lower case.

    Raises:
        DiffLensError: there is no such data set, it is not one for classification, or it cannot be loaded.
    """
    make, name = _torchvision_class(name)
    train_options, test_options = _split_options(make, name)
    train, classes = _torchvision_split(make, name, "train", train_options, labels)
    test = test_options and _torchvision_split(make, name, "test", test_options, labels)[0]
    if not test or (labels and test.labels is None):
        train, test = hold_out(train)
    metric: Metric = "mean_per_class" if name in _MEAN_PER_CLASS else "top1"
    classes = (classes or _numbers(train, test)) if labels else ()
    return ImageData(spec, name, classes, train, test, metric=metric)


def load_torchvision_unlabelled(name: str) -> ImageSplit:
    """Load the training images of a torchvision data set (all images if it has no splits), without labels."""
    make, name = _torchvision_class(name)
    return _torchvision_split(make, name, "train", _split_options(make, name)[0], labels=False)[0]


def has_test(name: str) -> bool:
    """Return True if a torchvision data set has a test split; errors as for `load_torchvision`."""
    return _split_options(*_torchvision_class(name))[1] is not None


def _torchvision_class(name: str) -> tuple[Callable[..., Any], str]:
    """Return torchvision's class whose name is `name` in any case, and the name as torchvision spells it."""
    titles = {
        title.lower(): title
        for title in torchvision.datasets.__all__
        if inspect.isclass(getattr(torchvision.datasets, title)) and title not in _NOT_BY_NAME
    }
    title = titles.get(name.lower())
    if title is None:
        near = [titles[key] for key in difflib.get_close_matches(name.lower(), titles, n=3, cutoff=0.5)]
        everything = listing(sorted(titles.values()), limit=100)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {everything}"
        raise DiffLensError(f"torchvision has no data set {name!r}; {hint}")
    return getattr(torchvision.datasets, title), title


def _split_options(
    make: Callable[..., Any], name: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return arguments to try, in order, for the training and for the test split; None if there are no
    splits."""
    if name in _SPECIAL:
        train, test = _SPECIAL[name]
        return [train], [test]
    parameters = inspect.signature(make).parameters
    if "train" in parameters:
        return [{"train": True}], [{"train": False}]
    for key in ("split", "image_set"):
        if key in parameters:
            names = ("train", "trainval"), ("test", "val", "valid")
            return [{key: value} for value in names[0]], [{key: value} for value in names[1]]
    return [{}], None


def _torchvision_split(
    make: Callable[..., Any], name: str, split: str, options: list[dict[str, Any]], labels: bool
) -> tuple[ImageSplit, tuple[str, ...]]:
    dataset = instantiate(make, name, options)
    targets = _targets(dataset, name) if labels else None
    pixels, names = _pixels(dataset), class_names(dataset)
    if pixels is None:
        return LibrarySplit(split, dataset, 0, targets), names
    return MemorySplit(split, pixels, targets), names


def instantiate(
    make: Callable[..., Any], name: str, options: list[dict[str, Any]], root: Path | None = None
) -> Any:
    """Return torchvision's data set `make`, with the first of `options` whose split exists.

    Args:
        name: the name of the data set, for messages.
        root: the folder of its files; None: `cache_folder()`, into which they are downloaded if necessary.

    Raises:
        DiffLensError: the data set cannot be loaded.
    """
    parameters = inspect.signature(make).parameters
    common: dict[str, Any] = {}
    if "root" in parameters:
        common["root"] = str(root or cache_folder())
        if root is None:
            cache_folder().mkdir(parents=True, exist_ok=True)
    # EMNIST and QMNIST hide `download` behind **kwargs
    if root is None and {"download", "kwargs"} & {*parameters} and name not in _NO_DOWNLOAD:
        common["download"] = True
    for option in options:
        try:
            return make(**common, **option)
        except ValueError as error:  # no split of this name
            problem: Exception = error
        except Exception as error:  # network, disk, checksum, a missing archive or library
            problem = error
            break
    raise DiffLensError(
        f"torchvision's {name} could not be loaded: {type(problem).__name__}: {problem}"
    ) from problem


def _targets(dataset: Any, name: str) -> Tensor | None:
    """Return the labels, (N,) long, or None if they are secret, as those of some test splits are.

    Images are decoded only if no attribute of the data set holds the labels.
    """
    ends = (0, len(dataset) - 1)
    expected = [dataset[i][1] for i in ends]
    if expected == [None, None]:
        return None
    if not all(isinstance(target, int | np.integer) or _is_scalar(target) for target in expected):
        raise DiffLensError(
            f"torchvision's {name} is not a classification data set: its targets are not class labels"
        )
    for attribute in ("targets", "labels", "_labels", "y", "_samples", "samples"):
        values = getattr(dataset, attribute, None)
        if values is None or len(values) != len(dataset):
            continue
        if attribute.endswith("samples"):
            values = [sample[1] for sample in values]
        try:
            labels = torch.as_tensor(values).long()
        except (TypeError, ValueError, RuntimeError):
            continue
        if labels.ndim == 1 and [int(labels[i]) for i in ends] == [int(target) for target in expected]:
            return labels
    return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])


def _is_scalar(target: object) -> bool:
    return isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point()


def _pixels(dataset: Any) -> Tensor | None:
    """Return uint8 (N, C, H, W) if the data set has the images of its items in memory, else None."""
    data = getattr(dataset, "data", None)
    if not isinstance(data, Tensor | np.ndarray) or len(data) != len(dataset):
        return None
    data = torch.as_tensor(data)
    if data.dtype != torch.uint8:
        return None
    first, last = (from_pil(dataset[i][0]) for i in (0, len(dataset) - 1))
    layouts = [data, data.permute(0, 3, 1, 2)] if data.ndim == 4 else [data[:, None]]
    for pixels in layouts:
        if torch.equal(pixels[0], first) and torch.equal(pixels[-1], last):
            return pixels.contiguous()
    return None


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names that a torchvision data set gives its classes; () if it gives none.

    Of classes of one name, such as ImageNet's two cranes, each has its number behind the name.
    """
    given: Sequence[Any] = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    # ImageNet's names are tuples of synonyms
    names = [str(name[0] if isinstance(name, tuple) else name) for name in given]
    shared = Counter(names)
    return tuple(name if shared[name] == 1 else f"{name} ({k})" for k, name in enumerate(names))


def _numbers(*splits: ImageSplit) -> tuple[str, ...]:
    labels = torch.cat([split.labels for split in splits if split.labels is not None])
    return tuple(map(str, range(int(labels.max()) + 1)))
