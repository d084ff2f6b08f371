"""CSV files that name images and their labels."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from difflens.data.files import read_lines
from difflens.data.split import FileSplit, ImageData, ImageSplit, split_off
from difflens.errors import DiffLensError, listing
from difflens.run.console import note

_SPLITS = ("train", "val", "test")
_WHAT = "a CSV file with the columns path, label and, if there is a split, split"

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class _Row:
    """A line of the file: the image relative to the file's folder, its label, and its split."""

    path: str
    label: str
    split: str


def load_table(file: Path, spec: str, labels: bool = True, val_fraction: float | None = None) -> ImageData:
    """Load images that a CSV file names, by the columns path, label and, if there is a split, split.

    Paths are absolute, or relative to the file's folder. The column split holds train, val and test; if both
    val and test occur, test is used. Other columns are ignored. Classes are the labels, sorted.

    Args:
        labels: False loads images without labels; the column label may be missing.
        val_fraction: without the column split: the share of each class, in (0, 1), that is held out for
            testing (`split.held_out`).

    Raises:
        DiffLensError: the file cannot be read, a column or an image is missing, a field is empty or wrong, an
            image is named twice, the splits have not the same classes, or there is a split and a fraction.
    """
    rows = _read(file, labels)
    has_split = bool(rows[0].split)
    if has_split and val_fraction is not None:
        raise DiffLensError(f"{file} has a column split: leave out --val-fraction")
    if not has_split and val_fraction is None:
        raise DiffLensError(f"{file} has no column split; --val-fraction 0.2 holds out a fifth of each class")
    classes = sorted({row.label for row in rows}) if rows[0].label else []
    if val_fraction is not None:
        train, test = split_off(_split("train", rows, classes, file), val_fraction, labels)
    else:
        present = {row.split for row in rows}
        held_out = "test" if "test" in present else "val"
        for name in ("train", held_out):
            if name not in present:
                raise DiffLensError(f"{file} has no rows of {name if name == 'train' else 'val or test'}")
        if len(present) == len(_SPLITS):
            note(f"{file.name}: rows of val are left out, as there are rows of test")
        if labels:
            _check_classes(file, rows, held_out)
        kept = classes if labels else []
        train, test = (
            _split(name, [row for row in rows if row.split == name], kept, file)
            for name in ("train", held_out)
        )
    return ImageData(spec, file.stem, tuple(classes) if labels else (), train, test)


def load_table_unlabelled(file: Path, val_fraction: float | None = None) -> ImageSplit:
    """Load the training images of a CSV file without labels: all of them without a split and a fraction.

    Raises:
        DiffLensError: as `load_table`.
    """
    rows = _read(file, labels=False)
    if rows[0].split or val_fraction is not None:
        return load_table(file, "", False, val_fraction).train
    return _split("train", rows, [], file)


def _split(name: str, rows: Sequence[_Row], classes: Sequence[str], file: Path) -> FileSplit:
    numbers = {label: number for number, label in enumerate(classes)}
    labels = torch.tensor([numbers[row.label] for row in rows]) if classes else None
    return FileSplit(name, [row.path for row in rows], labels, file.parent)


def _check_classes(file: Path, rows: Sequence[_Row], held_out: str) -> None:
    trained, tested = ({row.label for row in rows if row.split == name} for name in ("train", held_out))
    if trained != tested:
        one_sided = [
            f"only in {name}: {listing(sorted(labels))}"
            for name, labels in (("train", trained - tested), (held_out, tested - trained))
            if labels
        ]
        raise DiffLensError(
            f"{file} must have the same labels in train and {held_out}; {'; '.join(one_sided)}"
        )


def _read(file: Path, labels: bool) -> list[_Row]:
    """Return the rows of the file, of which there is at least one; all have a split, or none."""
    rows: list[_Row] = []
    lines: dict[str, int] = {}
    for number, row in _rows(file, labels):
        where = f"{file}, line {number}"
        if not row.path:
            raise DiffLensError(f"{where}: the path is empty")
        if labels and not row.label:
            raise DiffLensError(f"{where}: {row.path} has no label")
        if rows and bool(rows[0].split) != bool(row.split):
            raise DiffLensError(f"{where}: {row.path} has no split, unlike other rows")
        if row.split and row.split not in _SPLITS:
            raise DiffLensError(f"{where}: no split {row.split!r}; there are {listing(_SPLITS)}")
        path = os.path.normpath(file.parent / row.path)
        if path in lines:
            raise DiffLensError(f"{where}: {row.path} is named in line {lines[path]} already")
        if not Path(path).is_file():
            raise DiffLensError(f"{where}: there is no image {path}; paths are relative to the CSV file")
        lines[path] = number
        rows.append(row)
    if not rows:
        raise DiffLensError(f"{file} names no image; expected {_WHAT}")
    return rows


def _rows(file: Path, labels: bool) -> Iterator[tuple[int, _Row]]:
    """Yield the number of each line that is not blank, from 1, and its fields, without surrounding space."""
    reader = csv.reader(read_lines(file, _WHAT, files=True), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for name in ("path", "label") if labels else ("path",):
            if header.count(name) != 1:
                raise DiffLensError(
                    f"{file} has {'no' if name not in header else 'more than one'} column {name}: its first "
                    f"line names {listing(header)}; expected {_WHAT}"
                )
        for fields in reader:
            if not any(fields):
                continue
            if len(fields) != len(header):
                where = f"{file}, line {reader.line_num}"
                raise DiffLensError(f"{where}: {len(fields)} fields, and the first line names {len(header)}")
            values = dict(zip(header, map(str.strip, fields), strict=True))
            yield reader.line_num, _Row(values["path"], values.get("label", ""), values.get("split", ""))
    except csv.Error as error:
        raise DiffLensError(f"{file}, line {reader.line_num}: {error}; expected {_WHAT}") from error
