"""The loader of dense tasks: images are scaled, cropped and mirrored together with their labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from difflens.data.images import BadImage, StorageError, with_channels
from difflens.data.loader import chunks, epoch_order, read_batches
from difflens.errors import DiffLensError
from difflens.run.seeding import seeded

GREY = 127
"""The grey value that fills an image up to a square: the middle of the range."""

Labels = dict[str, Tensor]
"""The labels of one image: "mask", or "boxes", "labels" and, where there are masks, "masks"."""


@dataclass(frozen=True)
class DenseAugmentation:
    """Random scale, crop and flip: the large scale jittering of Ghiasi et al. (2021).

    Attributes:
        side: the side of the square that comes out, in pixels.
        whole: True scales an image so that its longer side is `side`, False so that its shorter side is.
        scale: the smallest and the largest of a further factor, drawn uniformly.
        flip: mirror an image with probability 1/2.
        fill: the mask's value where the square is larger than the image.
    """

    side: int
    whole: bool
    scale: tuple[float, float]
    flip: bool
    fill: int = 0

    def transform(self) -> Callable[[Any], Any]:
        """Return a torchvision transform of images together with their boxes and masks."""
        fills = {tv_tensors.Image: GREY, tv_tensors.Mask: self.fill}
        scale = _RandomScale(self.side, self.whole, self.scale)
        crop = v2.RandomCrop(self.side, pad_if_needed=True, fill=fills)
        return v2.Compose([scale, crop, v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)])


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images, (..., C, H, W), to `size` (height, width), bilinear and antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return v2.functional.resize(images, list(size), antialias=True)


def scaled_size(size: tuple[int, int], side: float, whole: bool) -> tuple[int, int]:
    """Return (height, width), each at least 1, of an image scaled so that its longer side is `side`.

    Args:
        size: (height, width) before.
        whole: False scales the shorter side to `side` instead.
    """
    scale = side / (max(size) if whole else min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def to_square(image: Tensor, side: int) -> Tensor:
    """Pad an image, (C, H, W), with grey at the right and the bottom to at least `side` x `side`."""
    height, width = image.shape[-2:]
    missing = (0, max(0, side - width), 0, max(0, side - height))
    return torch.nn.functional.pad(image, missing, value=GREY) if any(missing) else image


class _RandomScale(v2.Transform):  # type: ignore[misc]
    def __init__(self, side: int, whole: bool, scale: tuple[float, float]):
        super().__init__()
        self.side, self.whole, self.scale = side, whole, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(()))
        size: Any = v2.functional.get_size(flat_inputs[0])
        return {"size": list(scaled_size((size[0], size[1]), self.side * factor, self.whole))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_nearest(inpt.as_subclass(Tensor), params["size"]), like=inpt)
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=True)


def _nearest(masks: Tensor, size: list[int]) -> Tensor:
    """Return masks, (..., H, W), of `size` (height, width), by the value at each new pixel's centre.

    torchvision takes the value at its upper left corner, which moves a mask by half a pixel.
    """
    for dim, length in zip((-2, -1), size, strict=True):
        centres = (2 * torch.arange(length) + 1) * masks.shape[dim] // (2 * length)
        masks = masks.index_select(dim, centres)
    return masks


@dataclass
class Samples(Dataset["_Packed | DiffLensError"]):
    """Images of a split with their labels.

    Attributes:
        split: any split of images.
        labels: gives the labels of a position in the split.
        channels: channels of the images that come out, 1 or 3.
        augmentation: None leaves images and labels unchanged.
        seed: seed of the order and of the augmentation.
        rows: (M,) long: the positions to use. None: all.
        workers: processes that decode images. None: chosen by the machine and the number of images.
    """

    split: Any
    labels: Callable[[int], Labels]
    channels: int
    augmentation: DenseAugmentation | None = None
    seed: int = 0
    rows: Tensor | None = None
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.split) if self.rows is None else len(self.rows)

    def __getitem__(self, keys: Any) -> "_Packed | DiffLensError":
        try:
            samples = [self._sample(row, draw) for row, draw in keys]
        except (BadImage, StorageError) as error:  # as a value, because DataLoader would wrap the exception
            return error
        packed = {key: _packed([labels[key] for _, labels in samples]) for key in samples[0][1]}
        return [row for row, _ in keys], _packed([image for image, _ in samples]), packed

    def all(self, rows: Tensor, batch_size: int) -> Iterator[tuple[list[int], list[Tensor], list[Labels]]]:
        """Yield each of `rows`, (M,) long, once, in order, in batches: positions, images uint8 (C, H, W),
        labels."""

        def keys() -> Iterator[list[_Key]]:
            return ([(row, 0) for row in chunk] for chunk in chunks(rows, batch_size))

        return self._load(keys, len(rows))

    def training(
        self, start: int, stop: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[list[int], list[Tensor], list[Labels]]]:
        """Yield the batches `start` .. `stop` - 1 of an endless sequence of epochs, which the seed alone
        decides.

        Args:
            batch_size: images of a batch over all processes.
            rank, world: this process, and the number of processes that share each batch.

        Yields:
            Positions, images uint8 (C, H, W), labels.
        """
        rows = torch.arange(len(self.split)) if self.rows is None else self.rows
        count = len(rows)

        def keys() -> Iterator[list[_Key]]:
            epoch, order = -1, list[int]()
            for batch in range(start, stop):
                chosen = []
                for position in range(batch * batch_size + rank, (batch + 1) * batch_size, world):
                    if position // count != epoch:
                        epoch = position // count
                        order = rows[epoch_order(count, self.seed, epoch)].tolist()
                    chosen.append((order[position % count], position + 1))
                yield chosen

        return self._load(keys, (stop - start) * batch_size)

    def _load(self, keys: "Callable[[], Iterator[list[_Key]]]", count: int) -> Iterator[Any]:
        for rows, images, packed in read_batches(self, keys, count, self.workers):
            labels = {key: _unpacked(tensors) for key, tensors in packed.items()}
            by_image = [{key: values[k] for key, values in labels.items()} for k in range(len(rows))]
            yield rows, _unpacked(images), by_image

    def _sample(self, row: int, draw: int) -> tuple[Tensor, Labels]:
        image, labels = with_channels(self.split.image(row), self.channels), self.labels(row)
        if self.augmentation is None:
            return image, labels
        wrapped = {"image": tv_tensors.Image(image), **_wrapped(labels, image.shape[-2:])}
        with seeded(self.seed * 1_000_003 + draw):
            changed = self.augmentation.transform()(wrapped)
        tensors = {key: value.as_subclass(Tensor) for key, value in changed.items()}
        return tensors.pop("image"), _sanitised(tensors)


_Key = tuple[int, int]
"""A position in a split, and the number of the augmentation's draw."""

_Tensors = list[Tensor] | tuple[Tensor, list[int]]
"""Tensors of several images: a list, or one concatenated tensor and their lengths."""
_Packed = tuple[list[int], _Tensors, dict[str, _Tensors]]
"""A batch on its way between processes. Few tensors, as each takes a file descriptor, and a system may allow
1024."""


def _packed(tensors: list[Tensor]) -> _Tensors:
    """Concatenate tensors that differ in their first size alone; return others unchanged."""
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        return tensors
    return torch.cat(tensors), [len(tensor) for tensor in tensors]


def _unpacked(tensors: _Tensors) -> list[Tensor]:
    return tensors if isinstance(tensors, list) else list(tensors[0].split(tensors[1]))


def _wrapped(labels: Labels, size: Any) -> dict[str, Any]:
    """Return labels as the types that torchvision's transforms handle."""
    wrapped: dict[str, Any] = dict(labels)
    for key in ("mask", "masks"):
        if key in labels:
            wrapped[key] = tv_tensors.Mask(labels[key].to(torch.uint8))  # bool cannot be resized
    if "boxes" in labels:
        boxes: Any = tv_tensors.BoundingBoxes
        wrapped["boxes"] = boxes(labels["boxes"], format="XYXY", canvas_size=tuple(size))
    return wrapped


def _sanitised(labels: Labels) -> Labels:
    """Remove the objects that the crop cut away; a box encloses the rest of its mask."""
    if "boxes" not in labels:
        return labels
    boxes, masks = labels["boxes"], labels.get("masks")
    if masks is not None:
        masks = masks.bool()
        visible = masks.flatten(1).any(1)
        # masks_to_boxes gives the last pixel; a box ends behind it
        boxes = torchvision.ops.masks_to_boxes(masks[visible]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return {"boxes": boxes, "labels": labels["labels"][visible], "masks": masks[visible]}
    visible = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    return {"boxes": boxes[visible], "labels": labels["labels"][visible]}
