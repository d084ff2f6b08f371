"""MNIST's IDX files, and Fashion-MNIST (Xiao et al., 2017): the bundled subset and the full data set."""

import gzip
import os
import zlib
from functools import cache
from importlib.resources import as_file, files
from math import prod
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from difflens.data.files import cache_folder, folder_name
from difflens.data.split import ImageData, MemorySplit
from difflens.errors import DiffLensError, counted, expanded

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist."""

_PREFIXES = {"train": "train", "test": "t10k"}


def load_idx(folder: Path, spec: str, classes: tuple[str, ...] | None = None) -> ImageData:
    """Load MNIST-style data: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not.

    Args:
        classes: the names of the classes; None: "0", "1" and so on.

    Raises:
        DiffLensError: a file is missing, damaged or of another type, or images and labels differ in number.
    """
    train, test = (MemorySplit(split, *read_idx_split(folder, split)) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    count = int(torch.cat([train.labels, test.labels]).max()) + 1
    if classes is not None and count > len(classes):
        raise DiffLensError(
            f"{folder} has labels up to {count - 1}, but names of {counted(len(classes), 'class')}"
        )
    return ImageData(spec, folder_name(folder), classes or tuple(map(str, range(count))), train, test)


def read_idx_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read the split "train" or "test": images, uint8 (N, 1, H, W), and labels, (N,) long.

    Raises:
        DiffLensError: for the reasons of `load_idx`, or the split has no images.
    """
    if not folder.is_dir():
        raise DiffLensError(f"no such folder: {folder}; idx:FOLDER takes the folder of MNIST's IDX files")
    images = _read_idx(folder, f"{_PREFIXES[split]}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{_PREFIXES[split]}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DiffLensError(
            f"{folder} has {counted(len(images), split + ' image')} but {counted(len(labels), 'label')} for "
            "them"
        )
    if len(images) == 0:
        raise DiffLensError(f"{folder} has no {split} images: its IDX files count 0")
    return images[:, None], labels.long()


def load_fashion() -> ImageData:
    """Load the bundled subset of Fashion-MNIST: 10,000 training and 2,000 test images, 28 x 28,
    class-balanced."""
    arrays = _bundled()
    train, test = (
        MemorySplit(split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in _PREFIXES
    )
    return ImageData("fashion", "Fashion-MNIST (bundled subset)", FASHION_CLASSES, train, test)


def load_full_fashion() -> ImageData:
    """Load all of Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28.

    The files come from the folder that the environment variable DIFFLENS_FASHION_MNIST names, else from
    Debian's package, else from a download by torchvision into `cache_folder()`.

    Raises:
        DiffLensError: the files are damaged, or there are none and they cannot be downloaded.
    """
    named = os.environ.get("DIFFLENS_FASHION_MNIST")
    if named:
        folder = expanded(named)
        if not folder.is_dir():
            raise DiffLensError(f"DIFFLENS_FASHION_MNIST names {folder}, which is not a folder")
    else:
        folder = DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else _download_fashion()
    data = load_idx(folder, "fashion-full", FASHION_CLASSES)
    return ImageData(data.spec, "Fashion-MNIST", data.classes, data.train, data.test)


def _download_fashion() -> Path:
    root = cache_folder()
    try:
        for train in (True, False):
            torchvision.datasets.FashionMNIST(root, train=train, download=True)
    except Exception as error:  # network, disk or checksum
        raise DiffLensError(
            f"Fashion-MNIST is not on this machine and could not be downloaded into {root} ({error}); "
            "`apt install dataset-fashion-mnist` installs it, or give its folder as idx:FOLDER"
        ) from error
    return root / "FashionMNIST" / "raw"


@cache
def _bundled() -> dict[str, Tensor]:
    with (
        as_file(files("difflens") / "assets" / "fashion_mnist.npz") as path,
        np.load(path, allow_pickle=False) as arrays,
    ):
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {
        name: tensor[:, None] if name.endswith("_images") else tensor.long()
        for name, tensor in tensors.items()
    }


def _read_idx(folder: Path, name: str, dimensions: int) -> Tensor:
    """Read the uint8 array of an IDX file: a magic number 0x0000_08_dd, dd big-endian 32-bit sizes, the
    bytes."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DiffLensError(f"{folder} has neither {name}.gz nor {name}, which MNIST-style data consists of")
    magic = bytes((0, 0, 8, dimensions))
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            if start != magic:
                raise DiffLensError(
                    f"{path} is not an IDX file of bytes in {counted(dimensions, 'dimension')}: "
                    f"it begins with 0x{start.hex()} instead of 0x{magic.hex()}"
                )
            header, content = file.read(4 * dimensions), file.read()
    except (OSError, EOFError, zlib.error) as error:
        kind = "as a gzip file" if path.suffix == ".gz" else "from the disk"
        raise DiffLensError(f"{path} cannot be read {kind}: {error}") from error
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(0, 4 * dimensions, 4)]
    if len(header) < 4 * dimensions or len(content) != prod(shape):
        raise DiffLensError(
            f"{path} is truncated or damaged: its header promises {' x '.join(map(str, shape))} bytes, "
            f"{len(content)} follow"
        )
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8).reshape(shape))
