"""The COCO reader: objects from COCO's JSON format, checked entry by entry (Lin et al., 2014)."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difflens.choices import OnBadAnnotation
from difflens.data.dense.base import DenseData, Problems, require_entries
from difflens.data.images import BadImage, image_size
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, listing
from difflens.run.console import progress_bar

_TOLERANCE = 1.0
"""Pixels by which a box may leave its image: COCO rounds its own boxes by up to this much."""
_LAYOUT = (
    "annotations/instances_train*.json and instances_val*.json, and images in {train,val}*/ or "
    "images/{train,val}*/"
)

Annotations = tuple[Path, Path]
"""A folder of images, and the JSON file that annotates them."""


class ObjectSplit(FileSplit):
    """Images with objects.

    Args:
        ids: the image files, relative to `root`.
        record: a checked COCO record: images in the order of `ids`, annotations, categories.
        objects: the annotations of each image, without crowds, which are not trained on.
        labels: the class of each category id, from 1.
        masks: True if all objects have masks.
    """

    def __init__(
        self,
        name: str,
        ids: Sequence[str],
        root: Path,
        record: dict[str, Any],
        objects: Sequence[Sequence[Mapping[str, Any]]],
        labels: Mapping[int, int],
        masks: bool,
    ):
        super().__init__(name, ids, root=root)
        self.record, self.objects, self.label_of, self.has_masks = record, objects, labels, masks

    def target(self, i: int, masks: bool) -> dict[str, Tensor]:
        """Return the objects of image `i`.

        Returns:
            "boxes", (N, 4) float32: left, top, right, bottom in pixels, clipped to the image; "labels", (N,)
            long, from 1; with `masks` also "masks", (N, H, W) bool.
        """
        objects, image = self.objects[i], self.record["images"][i]
        corners = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        limit = torch.tensor([image["width"], image["height"]] * 2, dtype=torch.float32)
        target = {
            "boxes": torch.minimum(corners.clamp(min=0), limit),
            "labels": torch.tensor(
                [self.label_of[entry["category_id"]] for entry in objects], dtype=torch.long
            ),
        }
        if masks:
            size = (image["height"], image["width"])
            none = np.zeros((0, *size), bool)
            shapes = [decode(entry["segmentation"], size) for entry in objects]
            target["masks"] = torch.from_numpy(np.stack(shapes) if shapes else none)
        return target

    def former_fingerprint(self) -> str:
        digest = sha256(super().former_fingerprint().encode())
        for entry in (*self.record["images"], *self.record["annotations"], *self.record["categories"]):
            digest.update(repr(entry).encode())
        return digest.hexdigest()


def load_coco(root: Path, on_bad: OnBadAnnotation = "error") -> DenseData[ObjectSplit]:
    """Load a data set in COCO's layout: annotations/instances_NAME.json, images in NAME/, images/NAME/ or
    images/.

    Raises:
        DiffLensError: the layout is another, or an error of `load_annotations`.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUT}")
    train, val = (_find(root, split) for split in ("train", "val"))
    return load_annotations(train, val, on_bad, root.name)


def load_annotations(
    train: Annotations, val: Annotations, on_bad: OnBadAnnotation = "error", name: str | None = None
) -> DenseData[ObjectSplit]:
    """Load objects in images from a folder of images and a JSON file for each split.

    Images without annotations are negatives. COCO's evaluation takes crowds into account; the training does
    not.

    Raises:
        DiffLensError: a file is missing, is no JSON or is not in COCO's format, or the splits have other
            categories. With "error" also: a box is outside its image or has no area, a mask has another size
            than its image, a category is not in the list, an id appears twice, or an image is missing or has
            another size than recorded.
    """
    problems = Problems(on_bad)
    records = [_read(path) for _, path in (train, val)]
    categories = [_categories(record, path) for record, (_, path) in zip(records, (train, val), strict=True)]
    if categories[0] != categories[1]:
        different = sorted({*categories[0].items()} ^ {*categories[1].items()})
        raise DiffLensError(f"{train[1]} and {val[1]} have other categories: {listing(different, 3)}")
    labels = {identity: k for k, identity in enumerate(categories[0], start=1)}
    parts = []
    for record, (folder, path) in zip(records, (train, val), strict=True):
        if not folder.is_dir():
            raise DiffLensError(f"no such folder: {folder}, of the images of {path}")
        images = _checked_images(record["images"], folder, path, problems)
        annotations = _checked_annotations(record["annotations"], images, categories[0], path, problems)
        parts.append((images, annotations))
    masks = _checked_masks(parts, (train[1], val[1]), problems)
    problems.settle()
    splits = []
    for split, (images, annotations), (folder, path) in zip(
        ("train", "val"), parts, (train, val), strict=True
    ):
        require_entries(split, images, path, problems)
        objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            if not annotation.get("iscrowd"):
                objects[annotation["image_id"]].append(annotation)
        checked = {
            "images": list(images.values()),
            "annotations": annotations,
            "categories": [{"id": identity, "name": title} for identity, title in categories[0].items()],
        }
        ids = [image["file_name"] for image in images.values()]
        by_image = [objects[identity] for identity in images]
        splits.append(ObjectSplit(split, ids, folder, checked, by_image, labels, masks))
    return DenseData(
        name or train[1].stem, tuple(categories[0].values()), splits[0], splits[1], tuple(problems.lines)
    )


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (H, W), as COCO's run lengths, {"size": [H, W], "counts": [...]}.

    Runs go down the columns, and the first is a run of zeros.
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of `size` (H, W) that polygons or run lengths describe, as COCO's own tools draw it."""
    mask = mask_tools()
    encoded = mask.segmToRle(segmentation, size[1], size[0])
    decoded: NDArray[np.bool_] = mask.decode(encoded).astype(bool)
    return decoded


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (H, W), as COCO's compressed run lengths, which JSON can hold."""
    encoded = mask_tools().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def mask_tools() -> Any:
    """Return the module `mask` of faster-coco-eval.

    Raises:
        DiffLensError: the package is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DiffLensError('detection needs `pip install "difflens[dense]"`') from error
    return mask


def _find(root: Path, split: str) -> Annotations:
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(files) != 1:
        raise DiffLensError(
            f"{root / 'annotations'} must have one file instances_{split}*.json, but has {len(files)}; "
            f"expected {_LAYOUT}"
        )
    title = files[0].stem.removeprefix("instances_")
    folders = (root / title, root / "images" / title, root / "images")
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise DiffLensError(f"{root} has no folder of images for {files[0].name}; expected {_LAYOUT}")
    return folder, files[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DiffLensError(f"there is no {path}") from None
    except json.JSONDecodeError as error:
        raise DiffLensError(f"{path} is broken JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DiffLensError(f"{path} cannot be read: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = record.get(key) if isinstance(record, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DiffLensError(f"{path} is not in COCO's format: it needs a list {key!r} of objects")
    return dict(record)


def _categories(record: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, entry in enumerate(record["categories"]):
        identity, title = entry.get("id"), entry.get("name")
        if not isinstance(identity, int) or not isinstance(title, str) or identity in names:
            raise DiffLensError(
                f"{path}, categories[{number}]: a category has an id that no other has, and a name, not "
                f"{entry}"
            )
        names[identity] = title
    if not names:
        raise DiffLensError(f"{path} lists no categories")
    return dict(sorted(names.items()))


def _checked_images(
    entries: Sequence[dict[str, Any]], folder: Path, path: Path, problems: Problems
) -> dict[int, dict[str, Any]]:
    """Return the usable images by id: those that can be read and have the recorded size."""

    def read_size(entry: dict[str, Any]) -> tuple[int, int] | str:
        """The (height, width) of the file, or the reason why it cannot be read."""
        try:
            return image_size(folder / str(entry.get("file_name")))
        except BadImage as error:
            return f"{error.where}: {error.reason}"

    usable: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(8) as pool, progress_bar() as bar:
        task = bar.add_task(f"checking images of {path.name}", total=len(entries), note="")
        for number, (entry, size) in enumerate(zip(entries, pool.map(read_size, entries), strict=True)):
            bar.update(task, advance=1)
            identity = entry.get("id")
            where = f"{path}, images[{number}] (id {identity})"
            recorded = (entry.get("height"), entry.get("width"))
            if not isinstance(identity, int) or not isinstance(entry.get("file_name"), str):
                problems.add(where, "an image has a whole number as id and a file_name")
            elif identity in usable:
                problems.add(where, "this id belongs to an earlier image")
            elif isinstance(size, str):
                problems.add(where, f"cannot be read ({size})")
            elif recorded != size:
                problems.add(
                    where,
                    f"is recorded as {recorded[1]} x {recorded[0]} pixels, but the file has {size[1]} x "
                    f"{size[0]}",
                )
            else:
                usable[identity] = entry
    return usable


def _checked_annotations(
    entries: Sequence[dict[str, Any]],
    images: Mapping[int, dict[str, Any]],
    categories: Mapping[int, str],
    path: Path,
    problems: Problems,
) -> list[dict[str, Any]]:
    """Return the annotations that are right, with their area and "iscrowd" filled in."""
    usable: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        where = f"{path}, annotations[{number}] (id {entry.get('id')})"
        identity, category, area = (entry.get(key) for key in ("image_id", "category_id", "area"))
        image = images.get(identity) if isinstance(identity, int) else None
        if image is None:
            wrong = f"there is no usable image with id {identity}"
        elif not isinstance(entry.get("id"), int):
            wrong = "an annotation has a whole number as id"
        elif entry["id"] in seen:
            wrong = "this id belongs to an earlier annotation"
        elif not isinstance(category, int) or category not in categories:
            wrong = f"class id {category} is not in the list of categories"
        elif entry.get("iscrowd", 0) not in (0, 1):
            wrong = f"iscrowd is 0 or 1, not {entry['iscrowd']}"
        elif area is not None and not (isinstance(area, int | float) and isfinite(area) and area >= 0):
            wrong = f"an area is a number of pixels, not {area}"
        else:
            wrong = _wrong_box(entry.get("bbox"), image) or _wrong_mask(entry, image)
        if wrong:
            problems.add(where, wrong)
            continue
        seen.add(entry["id"])
        assert image is not None
        area = _area(entry, image) if area is None else area
        usable.append({**entry, "area": area, "iscrowd": int(entry.get("iscrowd", 0))})
    return usable


def _area(entry: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Return the area in pixels: that of the mask, or that of the box where there is no mask."""
    if entry.get("segmentation"):
        return float(_pixels(entry["segmentation"], image))
    return float(entry["bbox"][2] * entry["bbox"][3])


def _pixels(segmentation: Any, image: Mapping[str, Any]) -> int:
    """Return the number of pixels that a mask covers."""
    tools = mask_tools()
    return int(tools.area(tools.segmToRle(segmentation, image["width"], image["height"])))


def _wrong_box(box: Any, image: Mapping[str, Any]) -> str:
    """Return the reason why a box cannot be right, or ""."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and isfinite(v) for v in box)
    ):
        return f"a bbox is [left, top, width, height] in pixels, not {box}"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"the box {box} has no area"
    right, bottom = left + width - image["width"], top + height - image["height"]
    if max(-left, -top, right, bottom) > _TOLERANCE:
        return f"the box {box} is outside its image of {image['width']} x {image['height']} pixels"
    return ""


def _wrong_mask(entry: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Return the reason why a mask cannot be right, or ""; `_checked_masks` decides about missing masks."""
    shape = entry.get("segmentation")
    if not shape:
        return ""
    size = [image["height"], image["width"]]
    if isinstance(shape, dict):
        if shape.get("size") != size:
            return f"the mask has size {shape.get('size')}, its image {size} (height, width)"
        counts = shape.get("counts")
        if isinstance(counts, list) and not all(isinstance(run, int) and run >= 0 for run in counts):
            return "the mask's runs are not all whole numbers"
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            return f"the mask's runs cover {sum(counts)} pixels of {size[0] * size[1]}"
        if not isinstance(counts, list | str):
            return "the mask's counts are neither a list nor text"
    elif not isinstance(shape, list) or not all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape
    ):
        return "a mask is run lengths, or polygons of at least three points"
    try:
        empty = not _pixels(shape, image)
    except DiffLensError:
        raise
    except Exception as error:  # the library raises many kinds for damaged run lengths
        return f"the mask cannot be decoded: {error}"
    return "the mask has no pixels" if empty else ""


def _checked_masks(
    parts: Sequence[tuple[Mapping[int, Any], list[dict[str, Any]]]], paths: Sequence[Path], problems: Problems
) -> bool:
    """Return True if most objects have masks; objects without a mask are then bad, and are removed."""
    objects = [entry for _, annotations in parts for entry in annotations if not entry["iscrowd"]]
    with_mask = sum(bool(entry.get("segmentation")) for entry in objects)
    if with_mask <= len(objects) / 2:
        return False
    for (_, annotations), path in zip(parts, paths, strict=True):
        for entry in annotations:
            if not entry.get("segmentation"):
                problems.add(f"{path}, annotation with id {entry['id']}", "has no mask, and others have")
        annotations[:] = [entry for entry in annotations if entry.get("segmentation")]
    return True
