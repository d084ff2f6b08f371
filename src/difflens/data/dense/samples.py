"""Densely labelled images on their way to a network: scaled, cut and mirrored together with their labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from difflens.data.images import BadImage, with_channels
from difflens.data.loader import chunks, epoch_order, read_batches

GREY = 127
"""What images are filled up with to a square: the middle of their range."""

Labels = dict[str, Tensor]
"""Tensors of one image: "mask", or "boxes", "labels" and perhaps "masks"."""


@dataclass(frozen=True)
class DenseAugmentation:
    """Random scale, crop and flip.

    Attributes:
        side: of the square that comes out.
        whole: images are scaled to fit into the square, so that their longer side is `side`; else their shorter side is
            brought to it.
        scale: on top of that a factor, drawn uniformly between these.
        flip: mirror every second image.
        fill: of the mask, where the square is larger than the image.
    """

    side: int
    whole: bool
    scale: tuple[float, float]
    flip: bool
    fill: int = 0

    def transform(self) -> Callable[[Any], Any]:
        """A torchvision transform of images together with boxes and masks."""
        fills = {tv_tensors.Image: GREY, tv_tensors.Mask: self.fill}
        return v2.Compose([
            _RandomScale(self.side, self.whole, self.scale),
            v2.RandomCrop(self.side, pad_if_needed=True, fill=fills),
            v2.RandomHorizontalFlip(0.5 if self.flip else 0.0),
        ])  # fmt: skip


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images (..., C, H, W) at another size, bilinear and antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return v2.functional.resize(images, list(size), antialias=True)


def scaled_size(size: tuple[int, int], side: float, whole: bool) -> tuple[int, int]:
    """(height, width) of an image whose longer (`whole`) or shorter side is brought to `side`, each at least 1."""
    scale = side / (max(size) if whole else min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def to_square(image: Tensor, side: int) -> Tensor:
    """An image (C, H, W) filled up at the right and the bottom to at least `side` x `side`."""
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
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=True)


@dataclass
class Samples(Dataset["_Packed | BadImage"]):
    """Images of a split with their labels.

    Attributes:
        split: of any kind.
        labels: those of a position in it.
        channels: of the images.
        augmentation: None gives images as they are.
        seed: of the order and the augmentation.
        rows: positions to use, (M,) long; None: all.
        workers: processes that decode; None: as many as help.
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

    def __getitem__(self, keys: Any) -> "_Packed | BadImage":
        try:
            found = [self._sample(row, draw) for row, draw in keys]
        except BadImage as error:  # as a value, because DataLoader would wrap the exception
            return error
        packed = {key: _packed([labels[key] for _, labels in found]) for key in found[0][1]}
        return [row for row, _ in keys], _packed([image for image, _ in found]), packed

    def all(self, rows: Tensor, batch_size: int) -> Iterator[tuple[list[int], list[Tensor], list[Labels]]]:
        """Each of `rows` once, in order: positions, images uint8 (C, H, W), labels."""
        return self._load(
            lambda: ([(row, 0) for row in chunk] for chunk in chunks(rows, batch_size)), len(rows)
        )

    def training(
        self, start: int, stop: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[list[int], list[Tensor], list[Labels]]]:
        """The batches `start` .. `stop` - 1 of an endless sequence of epochs, which depends on the seed alone.

        Of several processes each gets its share of every batch of `batch_size`.
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

        return self._load(keys, min(count, (stop - start) * batch_size))

    def _load(self, keys: "Callable[[], Iterator[list[_Key]]]", count: int) -> Iterator[Any]:
        for rows, images, packed in read_batches(self, keys, count, self.workers):
            labels = {key: _unpacked(tensors) for key, tensors in packed.items()}
            by_image = [{key: each[k] for key, each in labels.items()} for k in range(len(rows))]
            yield rows, _unpacked(images), by_image

    def _sample(self, row: int, draw: int) -> tuple[Tensor, Labels]:
        image, labels = with_channels(self.split.image(row), self.channels), self.labels(row)
        if self.augmentation is None:
            return image, labels
        wrapped = {"image": tv_tensors.Image(image), **_wrapped(labels, image.shape[-2:])}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + draw)
            changed = self.augmentation.transform()(wrapped)
        found = {key: value.as_subclass(Tensor) for key, value in changed.items()}
        return found.pop("image"), _sanitised(found)


_Key = tuple[int, int]
"""A position in a split, and which draw of the augmentation."""


_Tensors = list[Tensor] | tuple[Tensor, list[int]]
_Packed = tuple[list[int], _Tensors, dict[str, _Tensors]]
"""A batch on its way between processes, where every tensor takes a file descriptor, of which there are often 1024."""


def _packed(tensors: list[Tensor]) -> _Tensors:
    """One after another in one tensor, and their lengths; as they are if they differ in another size than the first."""
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        return tensors
    return torch.cat(tensors), [len(tensor) for tensor in tensors]


def _unpacked(tensors: _Tensors) -> list[Tensor]:
    return tensors if isinstance(tensors, list) else list(tensors[0].split(tensors[1]))


def _wrapped(labels: Labels, size: Any) -> dict[str, Any]:
    """Labels as torchvision's transforms know them."""
    wrapped: dict[str, Any] = dict(labels)
    for key in ("mask", "masks"):
        if key in labels:
            wrapped[key] = tv_tensors.Mask(labels[key].to(torch.uint8))  # bool cannot be resized
    if "boxes" in labels:
        wrapped["boxes"] = tv_tensors.BoundingBoxes(labels["boxes"], format="XYXY", canvas_size=tuple(size))  # type: ignore[call-overload]
    return wrapped


def _sanitised(labels: Labels) -> Labels:
    """Without the objects that were cut away; boxes go round what is left of a mask."""
    if "boxes" not in labels:
        return labels
    boxes, masks = labels["boxes"], labels.get("masks")
    if masks is not None:
        masks = masks.bool()
        kept = masks.flatten(1).any(1)
        # the last pixel belongs to the box
        boxes = torchvision.ops.masks_to_boxes(masks[kept]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return {"boxes": boxes, "labels": labels["labels"][kept], "masks": masks[kept]}
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
    return {"boxes": boxes[kept], "labels": labels["labels"][kept]}
