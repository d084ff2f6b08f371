"""Images and labels in arrays, as one's own program holds them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from difflens.data.split import ImageData, MemorySplit
from difflens.errors import DiffLensError, counted

ARRAYS = "arrays"
"""What a run records as its data."""


def data_from_arrays(
    train: tuple[Any, Any], test: tuple[Any, Any], classes: Sequence[str] | None = None
) -> ImageData:
    """Return images and labels in memory as data for `probe`, `sweep` and `extract`.

    Args:
        train, test: images and labels, as arrays of NumPy or PyTorch. Images are uint8, 0 to 255, of shape
            (N, C, H, W), (N, H, W, C) or (N, H, W), with C 1 or 3. Labels are (N,) whole numbers from 0, or
            (N, K) bool or 0 and 1, if an image has several.
        classes: names of the K classes, in the order of the labels; None: "0", "1" and so on.

    Raises:
        DiffLensError: shapes, types or labels are others, there are no images, or two classes have one name.
    """
    splits = [_split(name, *pair) for name, pair in (("train", train), ("test", test))]
    first, second = (split.labels for split in splits)
    assert first is not None, "`_split` gives labels"
    assert second is not None
    if first.ndim != second.ndim or (first.ndim == 2 and first.shape[1] != second.shape[1]):
        raise DiffLensError("labels of train and test differ in shape")
    count = first.shape[1] if first.ndim == 2 else int(max(first.max(), second.max())) + 1
    names = tuple(map(str, range(count) if classes is None else classes))
    if len(names) < count:
        raise DiffLensError(f"labels are of {counted(count, 'class')}, and {len(names)} are named")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DiffLensError(f"two classes are named {twice[0]!r}, and figures are by name")
    return ImageData(ARRAYS, ARRAYS, names, *splits, metric="map" if first.ndim == 2 else "top1")


def _split(name: str, images: Any, labels: Any) -> MemorySplit:
    given = pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8:
        kind = str(pixels.dtype).removeprefix("torch.")
        raise DiffLensError(f"{name}: images of {kind}: they must be uint8, 0 to 255")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.numel():
        raise DiffLensError(
            f"{name}: images of shape {tuple(given.shape)}: they must be (N, C, H, W), "
            "(N, H, W, C) or (N, H, W), with C 1 or 3"
        )
    return MemorySplit(name, pixels.contiguous(), _labels(name, torch.as_tensor(labels), len(pixels)))


def _labels(name: str, labels: Tensor, count: int) -> Tensor:
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise DiffLensError(
            f"{name}: labels of shape {tuple(labels.shape)} for {counted(count, 'image')}: they must be (N,) "
            "or (N, K)"
        )
    if labels.ndim == 2:
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise DiffLensError(f"{name}: labels of several classes an image must be 0 or 1")
        return labels.bool()
    if labels.is_floating_point() or labels.dtype == torch.bool or bool((labels < 0).any()):
        raise DiffLensError(f"{name}: labels must be whole numbers from 0")
    return labels.long()
