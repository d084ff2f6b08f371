"""Pairs of pictures with known points, in SPair-71k's layout (Min et al., 2019).

    JPEGImages/CLASS/*.jpg        the pictures
    PairAnnotation/SPLIT/*.json   a pair each: names and sizes of both pictures, the box of the object, and
                                  its points

Both pictures of a pair have equally many points, as x, y in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch

from difflens.choices import PairSplit
from difflens.data.content import content_digest
from difflens.data.files import folder_name
from difflens.data.images import image_size
from difflens.errors import DiffLensError
from difflens.ranges import Pixels, Range
from difflens.run.reading import read_json

_LAYOUT = "JPEGImages/CLASS/*.jpg and PairAnnotation/{trn,val,test}/*.json, as SPair-71k has them"

Coordinate = Annotated[float, Range(-1, 2**20)]
Point = tuple[Coordinate, Coordinate]
"""x, y in pixels: whole numbers are the centres of pixels."""


@dataclass(frozen=True)
class _Annotation:
    """The fields of an annotation that are read."""

    src_imname: str
    trg_imname: str
    category: str
    src_imsize: tuple[Pixels, Pixels] | tuple[Pixels, Pixels, int]
    trg_imsize: tuple[Pixels, Pixels] | tuple[Pixels, Pixels, int]
    trg_bndbox: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    src_kps: tuple[Point, ...]
    trg_kps: tuple[Point, ...]

    def __post_init__(self) -> None:
        for name in (self.src_imname, self.trg_imname, self.category):
            if not name or Path(name).name != name:
                raise ValueError(f"{name!r} is no plain name of a file or folder")
        if len(self.src_kps) != len(self.trg_kps) or not self.src_kps:
            counts = f"{len(self.src_kps)} and {len(self.trg_kps)}"
            raise ValueError(f"src_kps and trg_kps hold {counts} points; expected equally many, at least one")
        left, top, right, bottom = self.trg_bndbox
        if not (right > left and bottom > top):
            raise ValueError(f"trg_bndbox is {self.trg_bndbox}; expected left, top, right and bottom")


@dataclass(frozen=True)
class Pair:
    """Two pictures of one class, and points that correspond.

    Attributes:
        name: the annotation's file name without its ending.
        label: the class.
        source, target: the pictures.
        source_points, target_points: P points each, in pixels.
        box: left, top, right and bottom of the object in the target, in pixels.
        target_size: (width, height) of the target.
    """

    name: str
    label: str
    source: Path
    target: Path
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    box: tuple[float, float, float, float]
    target_size: tuple[int, int]

    @property
    def box_length(self) -> float:
        """The longer side of the object's box, in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@dataclass(frozen=True)
class PairSet:
    """The pairs of a split, by class and name.

    Attributes:
        name: the title in reports.
        pairs: at least one.
        digest: of the annotations.
    """

    name: str
    pairs: tuple[Pair, ...]
    digest: str

    def fingerprint(self) -> str:
        """Return a hex digest of annotations and pictures."""
        pictures = sorted({path for pair in self.pairs for path in (pair.source, pair.target)})
        return sha256(f"{self.digest} {content_digest(pictures)}".encode()).hexdigest()

    def former_fingerprint(self) -> str:
        """Return the fingerprint: version 0.1 read no pairs."""
        return self.fingerprint()


def load_pairs_of_points(root: Path, split: PairSplit, limit: int | None = None, seed: int = 0) -> PairSet:
    """Load the pairs of a split, and check them against their pictures' sizes.

    Args:
        limit: the most pairs of each class, drawn by the seed; None: all.

    Raises:
        DiffLensError: the folder has another layout, an annotation is wrong, or a picture is missing, cannot
            be read, or has another size than its annotation says.
    """
    folder = root / "PairAnnotation" / split
    if not folder.is_dir() or not (root / "JPEGImages").is_dir():
        raise DiffLensError(f"{root} has no pairs of the split {split}; expected {_LAYOUT}")
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    if not files:
        raise DiffLensError(f"there is no *.json in {folder}; expected {_LAYOUT}")
    digest = sha256()
    by_class: dict[str, list[tuple[Path, _Annotation]]] = {}
    for path in files:
        annotation = read_json(path, _Annotation)
        digest.update(f"{path.name} {annotation}".encode(errors="surrogateescape"))
        by_class.setdefault(annotation.category, []).append((path, annotation))
    chosen = [each for label in sorted(by_class) for each in _drawn(by_class[label], limit, seed)]
    sizes: dict[Path, tuple[int, int]] = {}
    pairs = []
    for path, found in chosen:
        pictures = root / "JPEGImages" / found.category
        source, target = pictures / found.src_imname, pictures / found.trg_imname
        for picture, size, points in (
            (source, found.src_imsize, found.src_kps),
            (target, found.trg_imsize, found.trg_kps),
        ):
            if picture not in sizes:
                sizes[picture] = image_size(picture)
            height, width = sizes[picture]
            if (width, height) != tuple(size[:2]):
                said = f"{size[0]} x {size[1]}"
                raise DiffLensError(f"{path}: {picture} is {width} x {height} pixels, not {said}")
            outside = [point for point in points if not (point[0] <= width and point[1] <= height)]
            if outside:
                raise DiffLensError(f"{path}: the point {outside[0]} lies outside {picture}")
        pairs.append(
            Pair(
                path.stem,
                found.category,
                source,
                target,
                found.src_kps,
                found.trg_kps,
                found.trg_bndbox,
                (sizes[target][1], sizes[target][0]),
            )
        )
    return PairSet(f"{folder_name(root)} ({split})", tuple(pairs), digest.hexdigest())


def _drawn(
    pairs: Sequence[tuple[Path, _Annotation]], limit: int | None, seed: int
) -> Sequence[tuple[Path, _Annotation]]:
    """Return at most `limit` pairs, drawn by the seed, in their order."""
    if limit is None or len(pairs) <= limit:
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:limit]
    return [pairs[k] for k in order.sort().values.tolist()]
