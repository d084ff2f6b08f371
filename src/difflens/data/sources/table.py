"""CSV files that name images and their labels."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from difflens.data.files import read_lines
from difflens.data.labels import say_few, say_unmeasured
from difflens.data.split import FileSplit, ImageData, ImageSplit, split_off
from difflens.errors import DiffLensError, counted, listing
from difflens.run.console import note
from difflens.run.text import on_disk

_SPLITS = ("train", "val", "test")
_WHAT = "a CSV file with the columns path, label (or labels) and, if there is a split, split"

SEPARATOR = "|"
"""The separator of labels in a cell of the column labels, that of `pandas.Series.str.get_dummies`."""

# what separates labels in other files; a name may hold it where a file uses SEPARATOR too
_OTHERS = re.compile(r"[;,\s]+")

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class _Row:
    """A line of the file: the image relative to the file's folder, its labels, and its split.

    Attributes:
        labels: the label, or of the column labels any number of them; None of a file without either column.
    """

    path: str
    labels: tuple[str, ...] | None
    split: str


def load_table(file: Path, spec: str, labels: bool = True, val_fraction: float | None = None) -> ImageData:
    """Load images that a CSV file names, by the columns path, label and, if there is a split, split.

    Paths are absolute, or relative to the file's folder. The column split holds train, val and test; if both
    val and test occur, test is used. Other columns are ignored. Classes are the labels, sorted.

    The column labels, in place of label, holds any number of labels an image, separated by `SEPARATOR`. The
    labels of the splits are (N, K) bool then, and an image whose cell is empty has none of the classes.

    Args:
        labels: False loads images without labels; their column may be missing.
        val_fraction: without the column split: the share of each class, in (0, 1), that is held out for
            testing (`split.held_out`).

    Raises:
        DiffLensError: the file cannot be read, a column or an image is missing, a field is empty or wrong, an
            image is named twice, the splits have not the same classes, or there is a split and a fraction. Of
            several labels an image: a cell names one twice, another separator is used, or no training image
            has a class.
    """
    rows, several = _read(file, labels)
    has_split = bool(rows[0].split)
    if has_split and val_fraction is not None:
        raise DiffLensError(f"{file} has a column split: leave out --val-fraction")
    if not has_split and val_fraction is None:
        raise DiffLensError(f"{file} has no column split; --val-fraction 0.2 holds out a fifth of each class")
    if val_fraction is not None:
        classes = _classes(rows)
        train, test = split_off(_split("train", rows, classes, file, several), val_fraction, labels)
    else:
        present = {row.split for row in rows}
        held_out = "test" if "test" in present else "val"
        for name in ("train", held_out):
            if name not in present:
                raise DiffLensError(f"{file} has no rows of {name if name == 'train' else 'val or test'}")
        if len(present) == len(_SPLITS):
            note(f"{file.name}: rows of val are left out, as there are rows of test")
        rows = [row for row in rows if row.split in ("train", held_out)]
        classes = _classes(rows)
        if labels and not several:
            _check_classes(file, rows, held_out)
        kept = classes if labels else []
        train, test = (
            _split(name, [row for row in rows if row.split == name], kept, file, several)
            for name in ("train", held_out)
        )
    if labels and several:
        say_few(train, classes)
        say_unmeasured(test, classes)
    return ImageData(
        spec,
        file.stem,
        tuple(map(on_disk, classes)) if labels else (),
        train,
        test,
        metric="map" if labels and several else "top1",
    )


def has_split(file: Path) -> bool:
    """Return True if the images of a CSV file have splits; errors as for `load_table`."""
    rows, _ = _read(file, labels=False)
    return bool(rows[0].split)


def load_table_unlabelled(file: Path, val_fraction: float | None = None) -> ImageSplit:
    """Load the training images of a CSV file without labels: all of them without a split and a fraction.

    Raises:
        DiffLensError: as `load_table`.
    """
    rows, _ = _read(file, labels=False)
    if rows[0].split or val_fraction is not None:
        return load_table(file, "", False, val_fraction).train
    return _split("train", rows, [], file, False)


def _classes(rows: Sequence[_Row]) -> list[str]:
    return sorted({label for row in rows for label in row.labels or ()})


def _split(name: str, rows: Sequence[_Row], classes: Sequence[str], file: Path, several: bool) -> FileSplit:
    numbers = {label: number for number, label in enumerate(classes)}
    labels = None
    if classes:
        positions = [[numbers[label] for label in row.labels or ()] for row in rows]
        labels = torch.zeros(len(rows), len(classes), dtype=torch.bool)
        for row, chosen in zip(labels, positions, strict=True):
            row[chosen] = True
        labels = labels if several else torch.tensor(positions)[:, 0]
    return FileSplit(name, [row.path for row in rows], labels, file.parent)


def _check_classes(file: Path, rows: Sequence[_Row], held_out: str) -> None:
    trained, tested = (
        {label for row in rows if row.split == name for label in row.labels or ()}
        for name in ("train", held_out)
    )
    if trained != tested:
        one_sided = [
            f"only in {name}: {listing(sorted(labels))}"
            for name, labels in (("train", trained - tested), (held_out, tested - trained))
            if labels
        ]
        raise DiffLensError(
            f"{file} must have the same labels in train and {held_out}; {'; '.join(one_sided)}"
        )


def _read(file: Path, labels: bool) -> tuple[list[_Row], bool]:
    """Return the rows of the file, of which there is at least one, and True if it has the column labels.

    All rows have a split, or none.
    """
    # with line ends, as a quoted cell may hold some
    reader = csv.reader((f"{line}\n" for line in read_lines(file, _WHAT, files=True)), strict=True)
    header = _header(file, reader, labels)
    several = "labels" in header and "label" not in header
    rows: list[_Row] = []
    lines: dict[str, int] = {}
    for number, row in _rows(file, reader, header, several):
        where = f"{file}, line {number}"
        if not row.path:
            raise DiffLensError(f"{where}: the path is empty")
        if labels:
            _check_labels(where, row, several)
        if rows and bool(rows[0].split) != bool(row.split):
            raise DiffLensError(f"{where}: {row.path} has no split, unlike other rows")
        if row.split and row.split not in _SPLITS:
            raise DiffLensError(f"{where}: no split {row.split!r}; there are {listing(_SPLITS)}")
        path = os.path.normpath(Path.cwd() / file.parent / row.path)
        if path in lines:
            raise DiffLensError(f"{where}: {row.path} is named in line {lines[path]} already")
        if not Path(path).is_file():
            raise DiffLensError(f"{where}: there is no image {path}; paths are relative to the CSV file")
        lines[path] = number
        rows.append(row)
    if not rows:
        raise DiffLensError(f"{file} names no image; expected {_WHAT}")
    if labels and several:
        _check_separator(file, rows, lines)
    return rows, several


def _check_labels(where: str, row: _Row, several: bool) -> None:
    """Raise DiffLensError unless a row has one label, or several that differ."""
    assert row.labels is not None
    if not several:
        if not row.labels[0]:
            raise DiffLensError(f"{where}: {row.path} has no label")
        if SEPARATOR in row.labels[0]:
            raise DiffLensError(
                f"{where}: {row.labels[0]!r} has {SEPARATOR}, which separates labels: name the column labels"
            )
        return
    if "" in row.labels:
        raise DiffLensError(f"{where}: {SEPARATOR} separates labels, and a label of {row.path} is empty")
    twice = [label for k, label in enumerate(row.labels) if label in row.labels[:k]]
    if twice:
        raise DiffLensError(f"{where}: {row.path} has the label {twice[0]!r} twice")


def _check_separator(file: Path, rows: Sequence[_Row], lines: Mapping[str, int]) -> None:
    """Raise DiffLensError if labels are separated by something else, or every image has one label."""
    numbers, classes = list(lines.values()), {label for row in rows for label in row.labels or ()}
    if not classes:
        raise DiffLensError(f"{file}: no image has a label")
    separated = any(len(row.labels or ()) > 1 for row in rows)
    for row, number in zip(rows, numbers, strict=True):
        for label in row.labels or ():
            parts = _OTHERS.split(label)
            if len(parts) > 1 and (not separated or {*parts} <= classes):
                raise DiffLensError(
                    f"{file}, line {number}: {label!r} may be several labels: {SEPARATOR} separates labels"
                )
    if not separated and all(row.labels for row in rows):
        raise DiffLensError(
            f"{file}: every image has one label, and the column labels is for several: name it label"
        )


def _header(file: Path, reader: Any, labels: bool) -> list[str]:
    """Return the names of the columns, in lower case; one of them is path and, with `labels`, one label or
    labels."""
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
        raise DiffLensError(f"{file}, line {reader.line_num}: {error}; expected {_WHAT}") from error
    kind = "labels" if "labels" in header and "label" not in header else "label"
    for name in ("path", kind, "split") if labels else ("path", "split"):
        if header.count(name) > 1 or (name not in header and name != "split"):
            raise DiffLensError(
                f"{file} has {'no' if name not in header else 'more than one'} column {name}: its first "
                f"line names {listing(header)}; expected {_WHAT}"
            )
    if labels and {"label", "labels"} <= {*header}:
        raise DiffLensError(
            f"{file} has a column label and a column labels: leave one out, label for one label an image"
        )
    return header


def _rows(file: Path, reader: Any, header: Sequence[str], several: bool) -> Iterator[tuple[int, _Row]]:
    """Yield the number of each line that is not blank, from 1, and its fields, without surrounding space."""
    try:
        for fields in reader:
            if not any(fields):
                continue
            if len(fields) != len(header):
                where = f"{file}, line {reader.line_num}"
                raise DiffLensError(
                    f"{where}: {counted(len(fields), 'field')}, and the first line names {len(header)}"
                )
            values = dict(zip(header, map(str.strip, fields), strict=True))
            yield reader.line_num, _Row(values["path"], _labels(values, several), values.get("split", ""))
    except csv.Error as error:
        raise DiffLensError(f"{file}, line {reader.line_num}: {error}; expected {_WHAT}") from error


def _labels(values: Mapping[str, str], several: bool) -> tuple[str, ...] | None:
    """Return the labels in the fields of a line; None without a column of them."""
    if not several:
        return (values["label"],) if "label" in values else None
    return tuple(map(str.strip, values["labels"].split(SEPARATOR))) if values["labels"] else ()
