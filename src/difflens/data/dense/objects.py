"""Images with objects. A table holds the annotations: it is small, and loader processes share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difflens.choices import Exif
from difflens.data.dense.run_lengths import decode
from difflens.data.split import FileSplit

ANNOTATION = np.dtype(
    [
        ("id", np.int64),
        ("box", np.float64, 4),  # left, top, width, height in pixels
        ("area", np.float64),
        ("mask_end", np.int64),  # where its mask ends in the masks of all
        ("image", np.int32),  # the position of its image
        ("label", np.int32),  # its class, from 1
        ("crowd", np.bool_),
    ],
    align=True,
)
"""The columns of a table of annotations: 72 bytes a row."""


@dataclass(frozen=True)
class ObjectTable:
    """The annotations of a split. Its tensors go into shared memory when a process starts with a copy.

    Attributes:
        rows: (72 A,) uint8: A annotations in the order of their file, each an `ANNOTATION`.
        masks: (M,) uint8: the compressed run lengths of all masks, one after another; empty for boxes alone.
        order: (B,) long: the rows of the objects, image by image, without crowds, which are not trained on.
        starts: (N + 1,) long: where the objects of each of N images start in `order`, and where the last
            ones end.
    """

    rows: Tensor
    masks: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: NDArray[Any], masks: bytes | bytearray, images: int) -> "ObjectTable":
        """Make the table of a split of `images` images.

        Args:
            rows: (A,) of `ANNOTATION`.
            masks: the compressed run lengths of all masks, one after another.
        """
        objects = np.flatnonzero(~rows["crowd"])
        image = rows["image"][objects]
        return cls(
            torch.from_numpy(rows.view(np.uint8)),
            torch.from_numpy(np.frombuffer(masks, np.uint8).copy()),
            torch.from_numpy(objects[np.argsort(image, kind="stable")]),
            torch.from_numpy(np.searchsorted(np.sort(image), np.arange(images + 1))),
        )

    def columns(self) -> NDArray[Any]:
        """Return the annotations, (A,) of `ANNOTATION`, which share the memory of `rows`."""
        return self.rows.numpy().view(ANNOTATION)

    def objects(self, image: int) -> NDArray[Any]:
        """Return the rows, (K,) long, of the objects of the image at position `image`."""
        return self.order[self.starts[image] : self.starts[image + 1]].numpy()

    def counts(self) -> Tensor:
        """Return the number of objects of each image, (N,) long, without crowds."""
        return self.starts.diff()

    def mask(self, row: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return the mask of an annotation of an image of `size` (H, W) as compressed run lengths."""
        ends = self.columns()["mask_end"]
        counts = self.masks[ends[row - 1] if row else 0 : ends[row]].numpy().tobytes()
        return {"size": list(size), "counts": counts.decode()}


class ObjectSplit(FileSplit):
    """Images with objects.

    Args:
        ids: the image files, relative to `root`.
        image_ids: (N,) long: COCO's ids of the images.
        sizes: (N, 2) long: height and width in pixels.
        table: the annotations of all images.
        categories: COCO's id of each class, in the order of the labels, with its title.
        masks: True if all objects have masks.
        former: the fingerprint of version 0.1, made of the COCO file's entries.
        exif: "apply" turns images upright by their EXIF orientation.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        root: Path,
        image_ids: Tensor,
        sizes: Tensor,
        table: ObjectTable,
        categories: Mapping[int, str],
        masks: bool,
        former: str,
        exif: Exif = "apply",
    ):
        super().__init__(name, ids, root=root, exif=exif)
        self.image_ids, self.sizes, self.table = image_ids, sizes, table
        self.categories, self.has_masks, self._former = categories, masks, former

    def size(self, i: int) -> tuple[int, int]:
        """Return height and width of image `i` in pixels."""
        height, width = self.sizes[i].tolist()
        return height, width

    def target(self, i: int, masks: bool) -> dict[str, Tensor]:
        """Return the objects of image `i`.

        Returns:
            "boxes", (N, 4) float32: left, top, right, bottom in pixels, clipped to the image; "labels", (N,)
            long, from 1; with `masks` also "masks", (N, H, W) bool.
        """
        rows, (height, width) = self.table.objects(i), self.size(i)
        found = self.table.columns()[rows]
        corners = torch.from_numpy(found["box"].astype(np.float32))
        corners[:, 2:] += corners[:, :2]
        limit = torch.tensor([width, height] * 2, dtype=torch.float32)
        target = {
            "boxes": torch.minimum(corners.clamp(min=0), limit),
            "labels": torch.from_numpy(found["label"].astype(np.int64)),
        }
        if masks:
            none = np.zeros((0, height, width), bool)
            shapes = [decode(self.table.mask(row, (height, width)), (height, width)) for row in rows]
            target["masks"] = torch.from_numpy(np.stack(shapes) if shapes else none)
        return target

    def record(self) -> dict[str, Any]:
        """Return images, annotations and categories as in a COCO file."""
        keys, image_ids = [*self.categories], self.image_ids.tolist()
        images = [
            {"id": identity, "file_name": file, "height": height, "width": width}
            for identity, file, (height, width) in zip(image_ids, self.ids, self.sizes.tolist(), strict=True)
        ]
        columns, annotations = self.table.columns(), []
        fields = (columns[name].tolist() for name in ("id", "image", "label", "box", "area", "crowd"))
        for row, (identity, image, label, box, area, crowd) in enumerate(zip(*fields, strict=True)):
            annotation = {
                "id": identity,
                "image_id": image_ids[image],
                "category_id": keys[label - 1],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            if self.has_masks:
                annotation["segmentation"] = self.table.mask(row, self.size(image))
            annotations.append(annotation)
        categories = [{"id": identity, "name": title} for identity, title in self.categories.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def former_fingerprint(self) -> str:
        return self._former
