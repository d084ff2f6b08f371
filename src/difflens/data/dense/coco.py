"""The COCO reader: objects from COCO's JSON format, checked entry by entry (Lin et al., 2014)."""

import codecs
import reprlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from torch import Tensor

from difflens.choices import Exif, OnBadAnnotation
from difflens.data.dense.base import DenseData, Problems, distinct, misfit, require_entries, turned
from difflens.data.files import require_regular
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


class ObjectSplit(FileSplit):
    """Images with objects.

    Args:
        ids: the image files, relative to `root`.
        record: a checked COCO record: images in the order of `ids`, annotations, categories.
        objects: the annotations of each image, without crowds, which are not trained on.
        labels: the class of each category id, from 1.
        masks: True if all objects have masks.
        exif: "apply" turns images upright by their EXIF orientation.
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
        exif: Exif = "apply",
    ):
        super().__init__(name, ids, root=root, exif=exif)
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


def load_coco(root: Path, on_bad: OnBadAnnotation = "error", exif: Exif = "apply") -> DenseData[ObjectSplit]:
    """Load a data set in COCO's layout: annotations/instances_NAME.json, images in NAME/, images/NAME/ or
    images/.

    Raises:
        DiffLensError: the layout is another, or an error of `load_annotations`.
    """
    if not root.is_dir():
        raise DiffLensError(f"no such folder: {root}; expected {_LAYOUT}")
    train, val = (_find(root, split) for split in ("train", "val"))
    return load_annotations(train, val, on_bad, exif, root.name)


def load_annotations(
    train: Annotations,
    val: Annotations,
    on_bad: OnBadAnnotation = "error",
    exif: Exif = "apply",
    name: str | None = None,
) -> DenseData[ObjectSplit]:
    """Load objects in images from a folder of images and a JSON file for each split.

    Images without annotations are negatives. COCO's evaluation takes crowds into account; the training does
    not.

    Args:
        exif: "apply" turns images upright by their EXIF orientation, on which boxes and masks are then drawn;
            "ignore" leaves both as stored.

    Raises:
        DiffLensError: a file is missing, is no JSON, is too large or is not in COCO's format, or the splits
            have other categories. With "error" also: a field is not of its kind, a box is outside its image
            or has no area, a mask does not fit its image, a category is not in the list, an id appears twice,
            or an image is missing or has another size than recorded.
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
        images, count = _checked_images(record["images"], folder, path, problems, exif)
        oriented += count
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
            "categories": [{"id": identity, "name": title} for identity, title in titles.items()],
        }
        ids = [image["file_name"] for image in images.values()]
        by_image = [objects[identity] for identity in images]
        for image, found in zip(images.values(), by_image, strict=True):
            if masks and len(found) * image["height"] * image["width"] > _MOST_MASK_BYTES:
                raise DiffLensError(
                    f"{path}, image {image['file_name']}: {counted(len(found), 'mask')} of {image['width']} "
                    "x "
                    f"{image['height']} pixels take more than {_MOST_MASK_BYTES:,} bytes; cut it into "
                    "smaller images"
                )
        splits.append(ObjectSplit(split, ids, folder, checked, by_image, labels, masks, exif))
    notes = (*turned(oriented, exif), *_unseen(splits, titles))
    return DenseData(
        name or train[1].stem, tuple(titles.values()), splits[0], splits[1], tuple(problems.lines), notes
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


def _unseen(splits: Sequence[ObjectSplit], titles: Mapping[int, str]) -> list[str]:
    """Return a line for each split that shows no object of some classes."""
    lines = []
    for split in splits:
        seen = {entry["category_id"] for objects in split.objects for entry in objects}
        missing = [title for identity, title in titles.items() if identity not in seen]
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
            else:
                usable[entry["id"]] = entry
                count += found > 1
    return usable, count


def _checked_annotations(
    entries: Sequence[dict[str, Any]],
    images: Mapping[int, dict[str, Any]],
    categories: Mapping[int, str],
    path: Path,
    problems: Problems,
) -> list[dict[str, Any]]:
    """Return the annotations that are right, with their area and "iscrowd" filled in."""
    usable: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        wrong = _wrong_entry(_Annotation, entry)
        image: Mapping[str, Any] = {}
        if not wrong and entry["image_id"] not in images:
            wrong = f"there is no usable image with id {entry['image_id']}"
        elif not wrong:
            image = images[entry["image_id"]]
            if entry["id"] in seen:
                wrong = "this id belongs to an earlier annotation"
            elif entry["category_id"] not in categories:
                wrong = f"class id {entry['category_id']} is not in the list of categories"
            else:
                wrong = _wrong_box(entry["bbox"], image) or _wrong_mask(entry.get("segmentation"), image)
        if wrong:
            problems.add(f"{path}, annotations[{number}] (id {_shown(entry.get('id'))})", wrong)
            continue
        seen.add(entry["id"])
        area = _area(entry, image) if entry.get("area") is None else entry["area"]
        usable.append({**entry, "area": area, "iscrowd": int(entry.get("iscrowd", 0))})
    return usable


def _area(entry: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Return the area in pixels: that of the mask, or that of the box where there is no mask."""
    if entry.get("segmentation"):
        return float(_pixels(entry["segmentation"], image))
    return float(entry["bbox"][2] * entry["bbox"][3])


def _pixels(segmentation: Any, image: Mapping[str, Any]) -> int:
    """Return the number of pixels that a mask covers."""
    if isinstance(segmentation, dict):
        return int(sum(_runs(segmentation["counts"])[1::2]))
    tools = mask_tools()
    return int(tools.area(tools.segmToRle(segmentation, image["width"], image["height"])))


def _runs(counts: list[int] | str) -> list[int]:
    """Return run lengths, which a text holds in the compressed form of COCO's tools.

    Raises:
        ValueError: the text is cut or damaged.
    """
    if isinstance(counts, list):
        return counts
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the text of the mask's counts is cut or damaged")
    # a number has five bits a character, the lowest first; bit 32 says that more follow, bit 16 is the sign
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise ValueError("the text of the mask's counts is damaged: a run has more than 32 bits")
    place = np.arange(len(codes)) - np.repeat(first, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    # from the fourth number on, each is the difference from the number two places before
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    if runs.min() < 0:
        raise ValueError("the text of the mask's counts is damaged: a run is negative")
    return [int(run) for run in runs]


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
            covered = sum(_runs(shape["counts"]))
        except ValueError as error:
            return str(error)
        if covered != height * width:
            return f"the mask's runs cover {covered} pixels of {height * width}"
    elif wrong := _wrong_polygons(shape, width, height):
        return wrong
    return "" if _pixels(shape, image) else "the mask has no pixels"


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
