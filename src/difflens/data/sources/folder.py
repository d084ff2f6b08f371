"""Folders of images: ImageFolder trees of class folders, and images without labels."""

from pathlib import Path

import torch

from difflens.data.files import TREE, Others, find_images, folder_name, refuse_batches, require_folder
from difflens.data.split import FileSplit, ImageData, ImageSplit, split_off
from difflens.errors import DiffLensError, counted, listing
from difflens.run.console import note
from difflens.run.text import on_disk

_SPLIT_WORDS = ("train", "training", "test", "testing", "val", "valid", "validation")


def load_folder(root: Path, spec: str, labels: bool = True, val_fraction: float | None = None) -> ImageData:
    """Load an ImageFolder tree: train/CLASS/IMAGE, and test/ or val/ of the same classes.

    If both exist, test/ is used, unless it has no class folders: ImageNet's test labels are secret. Images
    may be in subfolders of their class. Hidden files and files that are no images are ignored.

    Args:
        labels: False loads all images of both folders, which then need no class folders.
        val_fraction: for a tree CLASS/IMAGE, or train/CLASS/IMAGE alone: the share of each class, in (0, 1),
            that is held out for testing (`split.held_out`).

    Raises:
        DiffLensError: a folder is missing or has no images, a class is in one of the two folders only, or
            there is a split and a fraction.
    """
    require_folder(root)
    refuse_batches(root)
    if val_fraction is not None:
        return _held_out(root, spec, labels, val_fraction)
    train = root / "train"
    if not train.is_dir():
        others = {*_subfolders(root)} - {"test", "val"}
        if others and others <= {*_split_folders(root)}:
            raise _other_names(root)
        advice = "; --val-fraction 0.2 holds out a fifth of each class" if others else ""
        raise DiffLensError(f"{root} has no train/ folder; expected {TREE}{advice}")
    test = _test_folder(root)
    if test.name == "test" and (root / "val").is_dir():
        note(f"val/ of {root} left out, as there is test/")
    left_out = Others()
    if not labels:
        splits = [
            FileSplit(where.name, _names(root, find_images(where, left_out)), root=root)
            for where in (train, test)
        ]
        left_out.tell()
        return ImageData(spec, folder_name(root), (), *splits)
    classes, tested = _class_folders(train), _class_folders(test)
    if classes != tested:
        differences = (train, {*classes} - {*tested}), (test, {*tested} - {*classes})
        one_sided = [
            f"only in {folder.name}/: {listing(sorted(names))}" for folder, names in differences if names
        ]
        both = f"{train.name}/ and {test.name}/"
        raise DiffLensError(f"{root} must have the same class folders in {both}; {'; '.join(one_sided)}")
    splits = [_labelled(root, where, classes, left_out) for where in (train, test)]
    left_out.tell()
    return ImageData(spec, folder_name(root), tuple(map(on_disk, classes)), *splits)


def load_folder_unlabelled(root: Path, val_fraction: float | None = None) -> ImageSplit:
    """Load all images of `root`/train if this folder exists, else of `root`, without labels.

    Args:
        val_fraction: leave out the images that `load_folder` holds out.

    Raises:
        DiffLensError: there is no such folder, or no image in it; or it has the folders of a split, and none
            is train/.
    """
    require_folder(root)
    refuse_batches(root)
    if val_fraction is not None:
        return _held_out(root, "", False, val_fraction).train
    train = root / "train"
    if not train.is_dir() and (folders := _subfolders(root)) and folders == _split_folders(root):
        raise _other_names(root)
    paths = find_images(train if train.is_dir() else root)
    return FileSplit("train", _names(root, paths), root=root)


def _held_out(root: Path, spec: str, labels: bool, fraction: float) -> ImageData:
    """Hold out a fraction of each class of a folder without test/ and val/; without class folders, of all."""
    there = [f"{name}/" for name in ("test", "val") if (root / name).is_dir()]
    if there:
        raise DiffLensError(f"{root} has a split of its own, {listing(there)}: leave out --val-fraction")
    where = root / "train" if (root / "train").is_dir() else root
    left_out = Others()
    classes = _class_folders(where) if labels else _subfolders(where)
    like_splits = _split_folders(root)
    if like_splits and (where != root or like_splits == _subfolders(root)):
        raise _other_names(root)
    if classes:
        whole = _labelled(root, where, classes, left_out)
        loose = sum(path.is_file() and not path.name.startswith(".") for path in where.iterdir())
        if loose:
            note(f"{counted(loose, 'file')} beside the class folders of {where} left out")
    else:
        whole = FileSplit("train", _names(root, find_images(where, left_out)), root=root)
    left_out.tell()
    splits = split_off(whole, fraction, labels)
    return ImageData(spec, folder_name(root), tuple(map(on_disk, classes)) if labels else (), *splits)


def _split_folders(root: Path) -> list[str]:
    """Return the folders, other than train/, whose name is that of a split."""
    return [name for name in _subfolders(root) if name.lower() in _SPLIT_WORDS and name != "train"]


def _other_names(root: Path) -> DiffLensError:
    named = listing([f"{name}/" for name in _split_folders(root)])
    return DiffLensError(
        f"{root} seems to have a split of its own, {named}: name its folders train/ and val/, and leave out "
        "--val-fraction"
    )


def load_photos(root: Path) -> FileSplit:
    """Load all images of a folder and its subfolders, without labels, as the split "images".

    Raises:
        DiffLensError: there is no such folder, or no image in it.
    """
    if not root.is_dir():
        problem = f"{root} is a file" if root.exists() else f"no such folder: {root}"
        raise DiffLensError(f"{problem}; expected a folder of images")
    refuse_batches(root)
    return FileSplit("images", _names(root, find_images(root)), root=root)


def _test_folder(root: Path) -> Path:
    candidates = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not candidates:
        raise DiffLensError(f"{root} has neither a test/ nor a val/ folder; expected {TREE}")
    return next((path for path in candidates if _subfolders(path)), candidates[0])


def _class_folders(split: Path) -> list[str]:
    names = _subfolders(split)
    if not names:
        raise DiffLensError(f"{split} has no class folders; expected {TREE}")
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled(root: Path, split: Path, classes: list[str], others: Others) -> FileSplit:
    by_class = [_names(root, find_images(split / name, others, split)) for name in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(names) for names in by_class]))
    return FileSplit(split.name, [name for names in by_class for name in names], labels, root)


def _names(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]
