"""The COCO reader: objects from COCO's JSON format, checked entry by entry (Lin et al., 2014)."""

import codecs
import reprlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from difflens.choices import Exif, OnBadAnnotation
from difflens.data.dense.base import (
    DenseData,
    Problems,
    distinct,
    misfit,
    require_entries,
    turned,
)
from difflens.data.dense.objects import ANNOTATION, ObjectSplit, ObjectTable
from difflens.data.dense.run_lengths import area, encode, runs_of
from difflens.data.files import folder_name, require_regular
from difflens.data.images import BadImage, image_size, orientation
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted, listing
from difflens.run.console import progress_bar

_TOLERANCE = 1.0
"""Pixels by which a box may leave its image: COCO rounds its own boxes by up to this much."""
_MOST_BYTES = 2**32
"""The largest size of a JSON file: ten times that of COCO's own."""
_MOST_MASK_BYTES = 2**32
"""The most bytes, one a pixel, that the masks of an image take."""
_MOST_POLYGONS = 10_000
_MOST_OUTLINE = 2_000_000
"""The most polygons of an object, and the longest outline in pixels, as drawing them takes memory."""
_LAYOUT = (
    "annotations/instances_train*.json and instances_val*.json, and images in {train,val}*/ or "
    "images/{train,val}*/"
)

Annotations = tuple[Path, Path]
"""A folder of images, and the JSON file that annotates them."""


_Id = Annotated[int, Field(ge=-(2**63), lt=2**63, description="a whole number of 64 bits")]
_Text = Annotated[str, Field(min_length=1, max_length=4096, description="a text of 1 to 4096 characters")]
_Side = Annotated[int, Field(ge=1, lt=2**31, description="a number of pixels, 1 or more")]
_Float = Annotated[float, Field(allow_inf_nan=False)]
# the first wrong number of a list is enough
_Polygon = Annotated[list[_Float], Field(min_length=6, fail_fast=True)]
_Runs = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(fail_fast=True)]


class _Entry(BaseModel):
    """An entry of a COCO file; a field's description says what is right."""

    model_config = ConfigDict(strict=True)

    id: _Id


class _Category(_Entry):
    name: _Text


class _Image(_Entry):
    file_name: _Text
    width: _Side
    height: _Side


class _RunLengths(BaseModel):
    model_config = ConfigDict(strict=True)

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: _Runs | str


class _Annotation(_Entry):
    image_id: _Id
    category_id: _Id
    bbox: Annotated[
        list[_Float],
        Field(min_length=4, max_length=4, description="[left, top, width, height] in pixels"),
    ]
    area: Annotated[float | None, Field(ge=0, allow_inf_nan=False, description="a number of pixels")] = None
    iscrowd: Annotated[Literal[0, 1] | bool, Field(description="0 or 1")] = 0
    segmentation: Annotated[
        _RunLengths | Annotated[list[_Polygon], Field(fail_fast=True)] | None,
        Field(description="polygons of at least three points, or run lengths in whole numbers or text"),
    ] = None


def load_coco(
    root: Path, on_bad: OnBadAnnotation = "error", exif: Exif = "apply", masks: bool = True
) -> DenseData[ObjectSplit]:
    """Load a data set in COCO's layout: annotations/instances_NAME.json, images in NAME/, images/NAME/ or
    images/.

    Raises:
        DiffLensError: the layout is another, or an error of `load_annotations`.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUT}")
    train, val = (_find(root, split) for split in ("train", "val"))
    return load_annotations(train, val, on_bad, exif, folder_name(root), masks)


def load_annotations(
    train: Annotations,
    val: Annotations,
    on_bad: OnBadAnnotation = "error",
    exif: Exif = "apply",
    name: str | None = None,
    masks: bool = True,
) -> DenseData[ObjectSplit]:
    """Load objects in images from a folder of images and a JSON file for each split.

    Images without annotations are negatives. COCO's evaluation takes crowds into account; the training does
    not.

    Args:
        exif: "apply" turns images upright by their EXIF orientation, on which boxes and masks are then drawn;
            "ignore" leaves both as stored.
        masks: False reads boxes alone; masks are then neither checked nor kept.

    Raises:
        DiffLensError: a file is missing, is no JSON, is too large or is not in COCO's format, or the splits
            have other categories. With "error" also: a field is not of its kind, a box is outside its image
            or has no area, a mask does not fit its image, a category is not in the list, an id or a file
            appears twice, or an image is missing or has another size than recorded.
    """
    problems = Problems(on_bad)
    records = [_read(path) for _, path in (train, val)]
    categories = [_categories(record, path) for record, (_, path) in zip(records, (train, val), strict=True)]
    if categories[0] != categories[1]:
        different = sorted({*categories[0].items()} ^ {*categories[1].items()})
        raise DiffLensError(f"{train[1]} and {val[1]} have other categories: {listing(different, 3)}")
    labels = {identity: k for k, identity in enumerate(categories[0], start=1)}
    titles = dict(zip(labels, distinct(categories[0]), strict=True))
    parts, oriented = [], 0
    for record, (folder, path) in zip(records, (train, val), strict=True):
        if not folder.is_dir():
            raise DiffLensError(f"no such folder: {folder}, of the images of {path}")
        images, count = _checked_images(record.pop("images"), folder, path, problems, exif)
        oriented += count
        # entries are dropped where they are read: as Python objects they are much larger
        annotations = _checked_annotations(
            record.pop("annotations"), images, labels, path, problems, _digest(images, folder), masks
        )
        parts.append((images, annotations))
    masked = sum(int(annotations.masked().sum()) for _, annotations in parts)
    with_masks = _checked_masks([annotations for _, annotations in parts], (train[1], val[1]), problems)
    problems.settle()
    splits = []
    for split, (images, annotations), (folder, path) in zip(
        ("train", "val"), parts, (train, val), strict=True
    ):
        require_entries(split, images, path, problems)
        table = ObjectTable.of(annotations.rows, annotations.masks, len(images))
        for identity, title in titles.items():
            annotations.digest.update(repr({"id": identity, "name": title}).encode())
        for image, found in zip(images.values(), table.counts().tolist(), strict=True):
            if with_masks and found * image["height"] * image["width"] > _MOST_MASK_BYTES:
                raise DiffLensError(
                    f"{path}, image {image['file_name']}: {counted(found, 'mask')} of {image['width']} x "
                    f"{image['height']} pixels take more than {_MOST_MASK_BYTES:,} bytes; cut it into "
                    "smaller images"
                )
        splits.append(
            ObjectSplit(
                split,
                [image["file_name"] for image in images.values()],
                folder,
                torch.tensor([*images]),
                torch.tensor([(image["height"], image["width"]) for image in images.values()]),
                table,
                titles,
                with_masks,
                annotations.digest.hexdigest(),
                exif,
            )
        )
    unused = [f"{counted(masked, 'object')} with a mask: most have none, so masks are not used"]
    notes = (
        *turned(oriented, exif),
        *_unseen(splits, titles),
        *(unused if masked and not with_masks else ()),
    )
    return DenseData(
        name or train[1].stem, tuple(titles.values()), splits[0], splits[1], tuple(problems.lines), notes
    )


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


def _unseen(splits: Sequence[ObjectSplit], titles: Mapping[int, str]) -> list[str]:
    """Return a line for each split that shows no object of some classes."""
    lines = []
    for split in splits:
        seen = {*split.table.columns()["label"][split.table.order.numpy()].tolist()}
        missing = [title for label, title in enumerate(titles.values(), start=1) if label not in seen]
        # a split without any object is an error of its own
        if missing and seen:
            lines.append(f"classes without an object in the {split.name} images: {listing(missing)}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    try:
        require_regular(path, "COCO's JSON")
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise DiffLensError(f"{path} has {counted(size, 'byte')}; at most {_MOST_BYTES:,} are read")
        # this parser bounds the depth of lists and the length of numbers
        record = from_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except FileNotFoundError:
        raise DiffLensError(f"there is no {path}") from None
    except OSError as error:
        raise DiffLensError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DiffLensError(f"{path} is broken JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = record.get(key) if isinstance(record, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DiffLensError(f"{path} is not in COCO's format: it needs a list {key!r} of objects")
    return dict(record)


def _wrong_entry(kind: type[_Entry], entry: Mapping[str, Any]) -> str:
    """Return the reason why a field of an entry cannot be right, or ""."""
    try:
        kind.model_validate(entry)
    except ValidationError as error:
        field = str(error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0])
        right = kind.model_fields[field].description
        return f"{field} is {right}, " + (
            f"not {_shown(entry[field])}" if field in entry else "and is missing"
        )
    return ""


def _shown(value: object) -> str:
    return "null" if value is None else reprlib.repr(value)


def _categories(record: dict[str, Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, entry in enumerate(record["categories"]):
        wrong = _wrong_entry(_Category, entry)
        if not wrong and entry["id"] in names:
            wrong = f"the id {entry['id']} belongs to an earlier category"
        if wrong:
            raise DiffLensError(f"{path}, categories[{number}]: {wrong}")
        names[entry["id"]] = entry["name"]
    if not names:
        raise DiffLensError(f"{path} lists no categories")
    return dict(sorted(names.items()))


def _checked_images(
    entries: Sequence[dict[str, Any]], folder: Path, path: Path, problems: Problems, exif: Exif
) -> tuple[dict[int, dict[str, Any]], int]:
    """Return the usable images by id: those that can be read and have the recorded size.

    Returns:
        The images, and the number of them that have an EXIF orientation.
    """

    def check(entry: dict[str, Any]) -> int | str:
        """Return the EXIF orientation of an image that is right, else the reason why it is not."""
        if wrong := _wrong_entry(_Image, entry):
            return wrong
        file, recorded = folder / entry["file_name"], (entry["height"], entry["width"])
        try:
            size, oriented = image_size(file, exif), orientation(file)
        except BadImage as error:
            return f"cannot be read ({error.where}: {error.reason})"
        if recorded == size:
            return oriented
        return (
            f"is recorded as {recorded[1]} x {recorded[0]} pixels, but the file has {size[1]} x {size[0]}"
            f"{misfit(recorded, file, exif)}"
        )

    usable: dict[int, dict[str, Any]] = {}
    ids: dict[str, int] = {}
    count = 0
    with ThreadPoolExecutor(8) as pool, progress_bar() as bar:
        task = bar.add_task(f"checking images of {path.name}", total=len(entries), note="")
        for number, (entry, found) in enumerate(zip(entries, pool.map(check, entries), strict=True)):
            bar.update(task, advance=1)
            where = f"{path}, images[{number}] (id {_shown(entry.get('id'))})"
            if isinstance(found, str):
                problems.add(where, found)
            elif entry["id"] in usable:
                problems.add(where, "this id belongs to an earlier image")
            elif (earlier := ids.setdefault(entry["file_name"], entry["id"])) != entry["id"]:
                problems.add(where, f"its file {entry['file_name']} is that of image id {earlier}")
            else:
                usable[entry["id"]] = entry
                count += found > 1
    return usable, count


@dataclass
class _Annotations:
    """The annotations of a file that are right.

    Attributes:
        rows: (A,) of `ANNOTATION`.
        masks: the compressed run lengths of all masks, one after another.
        digest: of images and annotations.
        masked_digest: of images and annotations that have a mask.
    """

    rows: NDArray[Any]
    masks: bytearray
    digest: Any
    masked_digest: Any

    def masked(self) -> NDArray[np.bool_]:
        """Return True for each annotation that has a mask, (A,)."""
        return np.diff(self.rows["mask_end"], prepend=0) > 0


def _digest(images: Mapping[int, dict[str, Any]], folder: Path) -> Any:
    """Return the digest of the images, with which that of a whole file begins."""
    files = FileSplit("", [image["file_name"] for image in images.values()], root=folder)
    digest = sha256(files.former_fingerprint().encode())
    for image in images.values():
        digest.update(repr(image).encode())
    return digest


def _checked_annotations(
    entries: Sequence[dict[str, Any]],
    images: Mapping[int, dict[str, Any]],
    labels: Mapping[int, int],
    path: Path,
    problems: Problems,
    digest: Any,
    masks: bool,
) -> _Annotations:
    """Return the annotations that are right, with their area and "iscrowd" filled in.

    Args:
        labels: the class of each category id, from 1.
        digest: of the images; it goes on with the annotations.
        masks: False leaves masks out, of all but the digest.
    """
    positions = {identity: k for k, identity in enumerate(images)}
    usable = _Annotations(np.zeros(len(entries), ANNOTATION), bytearray(), digest, digest.copy())
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        read = entry if masks else {key: value for key, value in entry.items() if key != "segmentation"}
        wrong = _wrong_entry(_Annotation, read)
        shape, mask, covered = read.get("segmentation"), b"", 0
        if not wrong and entry["image_id"] not in images:
            wrong = f"there is no usable image with id {entry['image_id']}"
        elif not wrong:
            image = images[entry["image_id"]]
            if entry["id"] in seen:
                wrong = "this id belongs to an earlier annotation"
            elif entry["category_id"] not in labels:
                wrong = f"class id {entry['category_id']} is not in the list of categories"
            else:
                wrong = _wrong_box(entry["bbox"], image) or _wrong_mask(shape, image)
            if shape and not wrong:
                size = (image["height"], image["width"])
                mask = encode(shape, size)
                covered = area(mask, size)
                wrong = "" if covered else "the mask has no pixels"
        if wrong:
            problems.add(f"{path}, annotations[{number}] (id {_shown(entry.get('id'))})", wrong)
            continue
        box, crowd, pixels = entry["bbox"], int(entry.get("iscrowd", 0)), entry.get("area")
        if pixels is None:
            pixels = float(covered if shape else box[2] * box[3])
        usable.masks.extend(mask)
        usable.rows[len(seen)] = (
            entry["id"],
            box,
            pixels,
            len(usable.masks),
            positions[entry["image_id"]],
            labels[entry["category_id"]],
            crowd,
        )
        seen.add(entry["id"])
        text = repr({**entry, "area": pixels, "iscrowd": crowd}).encode()
        usable.digest.update(text)
        if shape:
            usable.masked_digest.update(text)
    usable.rows = usable.rows[: len(seen)]
    return usable


def _wrong_box(box: Sequence[float], image: Mapping[str, Any]) -> str:
    """Return the reason why a box cannot be right, or ""."""
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"the box {box} has no area"
    right, bottom = left + width - image["width"], top + height - image["height"]
    if max(-left, -top, right, bottom) > _TOLERANCE:
        return f"the box {box} is outside its image of {image['width']} x {image['height']} pixels"
    return ""


def _wrong_mask(shape: Any, image: Mapping[str, Any]) -> str:
    """Return the reason why a mask cannot be right, or ""; `_checked_masks` decides about missing masks."""
    if not shape:
        return ""
    width, height = image["width"], image["height"]
    if isinstance(shape, dict):
        if shape["size"] != [height, width]:
            return f"the mask has size {shape['size']}, its image {[height, width]} (height, width)"
        try:
            covered = sum(runs_of(shape["counts"]))
        except ValueError as error:
            return str(error)
        if covered != height * width:
            return f"the mask's runs cover {covered} pixels of {height * width}"
        return ""
    return _wrong_polygons(shape, width, height)


def _wrong_polygons(polygons: Sequence[Sequence[float]], width: int, height: int) -> str:
    """Return the reason why polygons cannot be right, or ""; checked before they are drawn."""
    if len(polygons) > _MOST_POLYGONS:
        return f"the mask has {counted(len(polygons), 'polygon')}; at most {_MOST_POLYGONS:,} are drawn"
    outline = 0.0
    for polygon in polygons:
        if len(polygon) % 2:
            return f"a polygon has pairs of x and y, not {counted(len(polygon), 'number')}"
        points = np.array(polygon, np.float64).reshape(-1, 2)
        far = np.flatnonzero((points < [-width, -height]) | (points > [2 * width, 2 * height]))
        if len(far):
            value = polygon[int(far[0])]
            return f"a polygon reaches {_shown(value)}, far outside its image of {width} x {height} pixels"
        outline += float(np.abs(points - np.roll(points, 1, axis=0)).sum())
    most = min(_MOST_OUTLINE, 4 * (width + 1) * (height + 1))
    if outline > most:
        return f"the mask's outline is {outline:,.0f} pixels long; at most {most:,} are drawn in its image"
    return ""


def _checked_masks(parts: Sequence[_Annotations], paths: Sequence[Path], problems: Problems) -> bool:
    """Return True if most objects have masks; objects without a mask are then bad, and are removed.

    If most have none, the masks are removed.
    """
    objects = np.concatenate([~part.rows["crowd"] for part in parts])
    masked = np.concatenate([part.masked() for part in parts])
    if (masked & objects).sum() <= objects.sum() / 2:
        for part in parts:
            part.masks.clear()
            part.rows["mask_end"] = 0
        return False
    for part, path in zip(parts, paths, strict=True):
        masked = part.masked()
        for identity in part.rows["id"][~masked]:
            reason = "has no mask, and others have; --head faster-rcnn reads boxes alone"
            problems.add(f"{path}, annotation with id {identity}", reason)
        part.rows, part.digest = part.rows[masked], part.masked_digest
    return True
