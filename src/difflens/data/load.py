"""`load_data`: loads the data set that an option such as --data names."""

import difflib
from pathlib import Path

from difflens.data.sources.fine_grained import FINE_GRAINED, load_fine_grained
from difflens.data.sources.folder import load_folder, load_folder_unlabelled
from difflens.data.sources.hub import load_hub, load_hub_unlabelled
from difflens.data.sources.idx import load_fashion, load_full_fashion, load_idx, read_idx_split
from difflens.data.sources.torchvision_sets import load_torchvision, load_torchvision_unlabelled
from difflens.data.split import ImageData, ImageSplit, MemorySplit
from difflens.errors import DiffLensError, expanded

_PREFIXES = ("idx", "folder", "torchvision", "hf")
_ALONE = ("fashion", "fashion-full", *FINE_GRAINED)
_KNOWN = (
    "fashion, fashion-full, idx:FOLDER, folder:PATH (or the path alone), torchvision:NAME, hf:ID, and "
    f"{', '.join(FINE_GRAINED)} (or NAME:FOLDER)"
)


def load_data(spec: str | Path, labels: bool = True) -> ImageData:
    """Load the data set that `spec` describes.

    Args:
        spec: one of

            - `fashion`: the bundled subset of Fashion-MNIST, 10,000 training and 2,000 test images;
            - `fashion-full`: all of Fashion-MNIST, local or downloaded (`idx.load_full_fashion`);
            - `idx:FOLDER`: MNIST-style IDX files, gzipped or not;
            - `folder:PATH` or a path alone: train/CLASS/IMAGE and test/ or val/ (`folder.load_folder`);
            - `torchvision:NAME`: a torchvision classification data set;
            - `hf:ID`: a Hugging Face data set, `hf:ID:CONFIG` for one of its configurations;
            - `aircraft`, `cars`, `cub`, `dogs`, `flowers`, `nabirds`: a fine-grained data set from the
              download cache, or with `:FOLDER` from a folder (`fine_grained.load_fine_grained`).

            A name takes precedence over a folder of that name in the working directory; `folder:cars` is the
            folder.

        labels: False loads images without labels and classes, so data without labels can be used.

    Raises:
        DiffLensError: there is no such data set, or it is damaged or incomplete.
    """
    spec = str(spec)
    kind, place = _parse(spec)
    if kind == "torchvision":
        return load_torchvision(place, spec, labels)
    if kind == "hf":
        return load_hub(place, spec, labels)
    if kind == "folder":
        return load_folder(expanded(place), spec, labels)
    if kind in FINE_GRAINED:
        return load_fine_grained(kind, Path(place) if place else None, spec, labels)
    if kind == "idx":
        data = load_idx(expanded(place), spec)
    else:
        data = load_fashion() if kind == "fashion" else load_full_fashion()
    return data if labels else ImageData(spec, data.name, (), _unlabelled(data.train), _unlabelled(data.test))


def load_unlabelled(spec: str | Path) -> ImageSplit:
    """Load images for pre-training: the training split of any data set of `load_data`, without labels.

    A folder without train/ gives all images in it and its subfolders.

    Raises:
        DiffLensError: there is no such data set, or it is damaged or incomplete.
    """
    spec = str(spec)
    kind, place = _parse(spec)
    if kind == "torchvision":
        return load_torchvision_unlabelled(place)
    if kind == "hf":
        return load_hub_unlabelled(place)
    if kind == "folder":
        return load_folder_unlabelled(expanded(place))
    if kind in FINE_GRAINED:
        return load_fine_grained(kind, Path(place) if place else None, spec, labels=False).train
    if kind == "idx":
        return MemorySplit("train", read_idx_split(expanded(place), "train")[0])
    return _unlabelled(load_fashion().train if kind == "fashion" else load_full_fashion().train)


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
        return "folder", spec
    near = difflib.get_close_matches(prefix, (*_ALONE, *_PREFIXES), n=1)
    hint = f"did you mean {near[0]}{colon}{place}? " if near else ""
    raise DiffLensError(f"{spec!r} is neither a known data set nor a folder; {hint}known are {_KNOWN}")


def _unlabelled(split: ImageSplit) -> ImageSplit:
    assert split.pixels is not None
    return MemorySplit(split.name, split.pixels)
