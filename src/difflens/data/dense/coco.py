"""Objects in COCO's JSON: read, checked entry by entry, and decoded."""

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
"""Pixels by which a box may leave its image: COCO's own are rounded so far."""
_LAYOUT = "annotations/instances_train*.json and instances_val*.json, and images in {train,val}*/ or images/{train,val}*/"

Annotations = tuple[Path, Path]
"""A folder of images and the JSON file about them."""


class ObjectSplit(FileSplit):
    """Images with objects.

    Args:
        record: a checked COCO record: images in the order of `ids`, annotations, categories.
        objects: the annotations of each image but crowds, which are not trained on.
        labels: class of each category id, from 1.
        masks: do all objects have masks?
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
        """The objects of image `i`: "boxes" (N, 4) float32, left, top, right, bottom in pixels; "labels" (N,) long,
        from 1; and with `masks` "masks" (N, H, W) bool."""
        found, image = self.objects[i], self.record["images"][i]
        corners = torch.tensor([each["bbox"] for each in found], dtype=torch.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        limit = torch.tensor([image["width"], image["height"]] * 2, dtype=torch.float32)
        target = {
            "boxes": torch.minimum(corners.clamp(min=0), limit),
            "labels": torch.tensor([self.label_of[each["category_id"]] for each in found], dtype=torch.long),
        }
        if masks:
            size = (image["height"], image["width"])
            shapes = [decode(each["segmentation"], size) for each in found]
            target["masks"] = (
                torch.from_numpy(np.stack(shapes)) if shapes else torch.zeros(0, *size, dtype=torch.bool)
            )
        return target

    def _digest(self) -> str:
        digest = sha256(super()._digest().encode())
        for entry in (*self.record["images"], *self.record["annotations"], *self.record["categories"]):
            digest.update(repr(entry).encode())
        return digest.hexdigest()


def load_coco(root: Path, on_bad: OnBadAnnotation = "error") -> DenseData[ObjectSplit]:
    """The layout of COCO: annotations/instances_NAME.json, images in NAME/ or images/NAME/ or images/.

    Raises:
        DiffLensError: as `load_annotations`, or the layout is another.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUT}")
    found = [_find(root, split) for split in ("train", "val")]
    return load_annotations(found[0], found[1], on_bad, root.name)


def load_annotations(
    train: Annotations, val: Annotations, on_bad: OnBadAnnotation = "error", name: str | None = None
) -> DenseData[ObjectSplit]:
    """Objects in images, from a folder of images and a JSON file a split.

    Images without annotations are kept as negatives; crowds are kept for the evaluation, which knows what to do with
    them, and not trained on.

    Raises:
        DiffLensError: a file is missing, no JSON or not COCO's, the splits have other categories, or (with "error")
            a box is outside its image or has no area, a mask has another size than its image, a category is not in
            the list, an id appears twice, or an image is missing or has another size than recorded.
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
        for each in annotations:
            if not each.get("iscrowd"):
                objects[each["image_id"]].append(each)
        kept = {
            "images": list(images.values()),
            "annotations": annotations,
            "categories": [{"id": identity, "name": title} for identity, title in categories[0].items()],
        }
        ids = [image["file_name"] for image in images.values()]
        of_each = [objects[identity] for identity in images]
        splits.append(ObjectSplit(split, ids, folder, kept, of_each, labels, masks))
    return DenseData(
        name or train[1].stem, tuple(categories[0].values()), splits[0], splits[1], tuple(problems.lines)
    )


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as {"size": [H, W], "counts": [...]}: lengths of runs down the columns, the first of zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of `size` (H, W) from polygons or run lengths, as COCO's own tools draw it."""
    mask = mask_tools()
    encoded = mask.segmToRle(segmentation, size[1], size[0])
    decoded: NDArray[np.bool_] = mask.decode(encoded).astype(bool)
    return decoded


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) in COCO's compressed run lengths, with text that JSON takes."""
    encoded = mask_tools().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def mask_tools() -> Any:
    """faster-coco-eval's masks; DiffLensError if it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DiffLensError('detection needs `pip install "difflens[dense]"`') from error
    return mask


def _find(root: Path, split: str) -> Annotations:
    files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if len(files) != 1:
        what = f"{len(files)} of them" if files else "none"
        raise DiffLensError(
            f"{root / 'annotations'} should have one file instances_{split}*.json and has {what}; expected {_LAYOUT}"
        )
    title = files[0].stem.removeprefix("instances_")
    folders = (root / title, root / "images" / title, root / "images")
    folder = next((each for each in folders if each.is_dir()), None)
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
    found: dict[int, str] = {}
    for place, entry in enumerate(record["categories"]):
        identity, title = entry.get("id"), entry.get("name")
        if not isinstance(identity, int) or not isinstance(title, str) or identity in found:
            raise DiffLensError(
                f"{path}, categories[{place}]: a category has an id that no other has, and a name, not {entry}"
            )
        found[identity] = title
    if not found:
        raise DiffLensError(f"{path} lists no categories")
    return dict(sorted(found.items()))


def _checked_images(
    entries: Sequence[dict[str, Any]], folder: Path, path: Path, problems: Problems
) -> dict[int, dict[str, Any]]:
    """The images that are there and as large as recorded, by id."""

    def look(entry: dict[str, Any]) -> tuple[int, int] | str:
        try:
            return image_size(folder / str(entry.get("file_name")))
        except BadImage as error:
            return f"{error.where}: {error.reason}"

    kept: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(8) as pool, progress_bar() as bar:
        task = bar.add_task(f"checking images of {path.name}", total=len(entries), note="")
        for place, (entry, size) in enumerate(zip(entries, pool.map(look, entries), strict=True)):
            bar.update(task, advance=1)
            identity = entry.get("id")
            where = f"{path}, images[{place}] (id {identity})"
            recorded = (entry.get("height"), entry.get("width"))
            if not isinstance(identity, int) or not isinstance(entry.get("file_name"), str):
                problems.add(where, "an image has a whole number as id and a file_name")
            elif identity in kept:
                problems.add(where, "this id belongs to an earlier image")
            elif isinstance(size, str):
                problems.add(where, f"cannot be read ({size})")
            elif recorded != size:
                problems.add(
                    where,
                    f"is recorded as {recorded[1]} x {recorded[0]} pixels, but the file has {size[1]} x {size[0]}",
                )
            else:
                kept[identity] = entry
    return kept


def _checked_annotations(
    entries: Sequence[dict[str, Any]],
    images: Mapping[int, dict[str, Any]],
    categories: Mapping[int, str],
    path: Path,
    problems: Problems,
) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for place, entry in enumerate(entries):
        where = f"{path}, annotations[{place}] (id {entry.get('id')})"
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
        kept.append({**entry, "area": area, "iscrowd": int(entry.get("iscrowd", 0))})
    return kept


def _area(entry: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Of the mask, or without one of the box."""
    if entry.get("segmentation"):
        return float(_pixels(entry["segmentation"], image))
    return float(entry["bbox"][2] * entry["bbox"][3])


def _pixels(segmentation: Any, image: Mapping[str, Any]) -> int:
    """How many a mask covers."""
    tools = mask_tools()
    return int(tools.area(tools.segmToRle(segmentation, image["width"], image["height"])))


def _wrong_box(box: Any, image: Mapping[str, Any]) -> str:
    """What is wrong with it, or nothing."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and isfinite(v) for v in box)
    ):
        return f"a bbox is [left, top, width, height] in pixels, not {box}"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"the box {box} has no area"
    inside = min(left, top) >= -_TOLERANCE
    if (
        not inside
        or left + width > image["width"] + _TOLERANCE
        or top + height > image["height"] + _TOLERANCE
    ):
        return f"the box {box} is outside its image of {image['width']} x {image['height']} pixels"
    return ""


def _wrong_mask(entry: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """What is wrong with it, or nothing; a missing mask is judged with all others, by `_checked_masks`."""
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
    """Do objects have masks? Where most have, those without are bad and removed."""
    objects = [each for _, annotations in parts for each in annotations if not each["iscrowd"]]
    with_mask = sum(bool(each.get("segmentation")) for each in objects)
    if with_mask <= len(objects) / 2:
        return False
    for (_, annotations), path in zip(parts, paths, strict=True):
        for each in annotations:
            if not each.get("segmentation"):
                problems.add(f"{path}, annotation with id {each['id']}", "has no mask, and others have")
        annotations[:] = [each for each in annotations if each.get("segmentation")]
    return True
