"""`load_data`: loads the data set that an option such as --data names."""

from pathlib import Path

from difflens.data.sources.arrays import ARRAYS
from difflens.data.sources.fine_grained import FINE_GRAINED, load_fine_grained
from difflens.data.sources.folder import load_folder, load_folder_unlabelled
from difflens.data.sources.hub import load_hub, load_hub_unlabelled
from difflens.data.sources.idx import load_fashion, load_full_fashion, load_idx, read_idx_split
from difflens.data.sources.shards import has_test_shards, load_shards, load_shards_unlabelled
from difflens.data.sources.table import has_split, load_table, load_table_unlabelled
from difflens.data.sources.torchvision_sets import has_test, load_torchvision, load_torchvision_unlabelled
from difflens.data.split import ImageData, ImageSplit, MemorySplit
from difflens.errors import DiffLensError, did_you_mean, expanded, nearby

_PREFIXES = ("idx", "folder", "csv", "torchvision", "hf", "wds")
_WITHOUT_SPLIT = ("folder", "csv")
# sources that hold out a fifth of each class where there are no test images; and, for data without labels,
# all of their training images
_HELD_OUT = {"torchvision": load_torchvision, "hf": load_hub, "wds": load_shards}
_UNLABELLED = {
    "torchvision": load_torchvision_unlabelled,
    "hf": load_hub_unlabelled,
    "wds": load_shards_unlabelled,
}
_ALONE = ("fashion", "fashion-full", *FINE_GRAINED)
_KNOWN = (
    "fashion, fashion-full, idx:FOLDER, folder:PATH, csv:FILE (or the path alone), torchvision:NAME, hf:ID, "
    f"wds:PATTERN, and {', '.join(FINE_GRAINED)} (or NAME:FOLDER)"
)


def load_data(spec: str | Path, labels: bool = True, val_fraction: float | None = None) -> ImageData:
    """Load the data set that `spec` describes.

    Args:
        spec: one of

            - `fashion`: the bundled subset of Fashion-MNIST, 10,000 training and 2,000 test images;
            - `fashion-full`: all of Fashion-MNIST, local or downloaded (`idx.load_full_fashion`);
            - `idx:FOLDER`: MNIST-style IDX files, gzipped or not;
            - `folder:PATH` or a path alone: train/CLASS/IMAGE and test/ or val/ (`folder.load_folder`);
            - `csv:FILE` or a path that ends in .csv: columns path, label and split (`table.load_table`);
            - `torchvision:NAME`: a torchvision classification data set;
            - `hf:ID`: a Hugging Face data set, `hf:ID:CONFIG` for one of its configurations;
            - `wds:PATTERN`: WebDataset shards, local tar files (`shards.load_shards`);
            - `aircraft`, `cars`, `cub`, `dogs`, `flowers`, `nabirds`: a fine-grained data set from the
              download cache, or with `:FOLDER` from a folder (`fine_grained.load_fine_grained`).

            A name takes precedence over a folder of that name in the working directory; `folder:cars` is the
            folder.

        labels: False loads images without labels and classes, so data without labels can be used.
        val_fraction: for folders and CSV files without a split: the share of each class, in (0, 1), that is
            held out for testing. The draw has a seed of its own, so all commands share the split.

    Raises:
        DiffLensError: there is no such data set, it is damaged or incomplete, or it has a split and a
            fraction.
    """
    spec = str(spec)
    if spec == ARRAYS:
        raise DiffLensError("the images were arrays of a program, which alone can give them again: data=")
    kind, place = _parse(spec)
    _check_fraction(kind, spec, val_fraction)
    if kind in _HELD_OUT:
        load = _HELD_OUT[kind]
        if labels:
            return load(place, spec)
        return _by_class(kind, place, spec) or load(place, spec, labels=False)
    if kind == "folder":
        return load_folder(expanded(place), spec, labels, val_fraction)
    if kind == "csv":
        return load_table(expanded(place), spec, labels, val_fraction)
    if kind in FINE_GRAINED:
        return load_fine_grained(kind, Path(place) if place else None, spec, labels)
    if kind == "idx":
        data = load_idx(expanded(place), spec)
    else:
        data = load_fashion() if kind == "fashion" else load_full_fashion()
    return data if labels else _unlabelled_data(data)


def without_split(spec: str) -> bool:
    """Return True for a folder of images without train/."""
    folder = expanded(spec.removeprefix("folder:"))
    return folder.is_dir() and not (folder / "train").is_dir()


def without_test(spec: str) -> bool:
    """Return True for data that needs a fraction to have test images: a folder without test/ and val/, or a
    CSV file without the column split.

    Raises:
        DiffLensError: there is no such data set, or the CSV file is damaged or incomplete.
    """
    kind, place = _parse(spec)
    if kind == "csv":
        return not has_split(expanded(place))
    return kind == "folder" and not any((expanded(place) / name).is_dir() for name in ("test", "val"))


def same_data(one: str, other: str) -> bool:
    """Return True if two descriptions name one data set: they are equal, or one folder or file."""
    paths = [expanded(spec.removeprefix("folder:").removeprefix("csv:")) for spec in (one, other)]
    return one == other or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))


def load_unlabelled(spec: str | Path, val_fraction: float | None = None) -> ImageSplit:
    """Load images for pre-training: the training split of any data set of `load_data`, without labels.

    A folder without train/ gives all images in it and its subfolders, and a CSV file without a split all of
    its images, but for those that `val_fraction` holds out. Of torchvision, hub and WebDataset data with
    labels and without test images, those that `load_data` holds out are left out.

    Raises:
        DiffLensError: there is no such data set, it is damaged or incomplete, or it has a split and a
            fraction.
    """
    spec = str(spec)
    kind, place = _parse(spec)
    _check_fraction(kind, spec, val_fraction)
    if kind in _HELD_OUT:
        data = _by_class(kind, place, spec)
        return _UNLABELLED[kind](place) if data is None else data.train
    if kind == "folder":
        return load_folder_unlabelled(expanded(place), val_fraction)
    if kind == "csv":
        return load_table_unlabelled(expanded(place), val_fraction)
    if kind in FINE_GRAINED:
        return load_fine_grained(kind, Path(place) if place else None, spec, labels=False).train
    if kind == "idx":
        return MemorySplit("train", read_idx_split(expanded(place), "train")[0])
    return (load_fashion() if kind == "fashion" else load_full_fashion()).train.unlabelled()


def _by_class(kind: str, place: str, spec: str) -> ImageData | None:
    """Load data without labels, of which the same images are held out, class by class, as with labels.

    Returns:
        None for data that has test images of its own or cannot be loaded with labels.
    """
    if (kind == "torchvision" and has_test(place)) or (kind == "wds" and has_test_shards(place)):
        return None
    try:
        return _unlabelled_data(_HELD_OUT[kind](place, spec))
    except DiffLensError:
        return None


def _unlabelled_data(data: ImageData) -> ImageData:
    return ImageData(data.spec, data.name, (), data.train.unlabelled(), data.test.unlabelled())


def _check_fraction(kind: str, spec: str, fraction: float | None) -> None:
    """Raise DiffLensError if there is a fraction out of (0, 1), or for data that has a split of its own."""
    if fraction is None:
        return
    if kind not in _WITHOUT_SPLIT:
        raise DiffLensError(f"{spec} has a split of its own: leave out --val-fraction")
    if not 0 < fraction < 1:
        raise DiffLensError(f"the fraction that is held out is {fraction:g}; it must be between 0 and 1")


def _parse(spec: str) -> tuple[str, str]:
    """Return the kind of source, and the part of `spec` after its prefix."""
    if spec in _ALONE:
        return spec, ""
    prefix, colon, place = spec.partition(":")
    if colon and prefix in (*_PREFIXES, *FINE_GRAINED):
        if not place:
            raise DiffLensError(f"{spec!r} names no data set; known are {_KNOWN}")
        return prefix, place
    if spec and expanded(spec).exists():
        return "csv" if spec.lower().endswith(".csv") and expanded(spec).is_file() else "folder", spec
    names = [f"{name}{colon}{place}" for name in (*_ALONE, *_PREFIXES)]
    hint = did_you_mean(spec, (*names, *nearby(Path(spec))))
    raise DiffLensError(
        f"{spec!r} is neither a known data set nor a folder or file; {hint}known are {_KNOWN}"
    )
