"""predictions.csv: the prediction of a classifier for each test image."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import torch

from difflens.errors import DiffLensError
from difflens.metrics.classification import Evaluation

_COLUMNS = ["image", "class", "predicted", "probability"]


def predictions_csv(evaluation: Evaluation, ids: Sequence[str]) -> str:
    """Return one line for each test image: its name, true class, predicted class and the probability of the
    latter.

    Args:
        ids: the names of the images of the whole split.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    names = evaluation.classes
    for row, label, ranked, confidence in zip(
        evaluation.rows.tolist(),
        evaluation.labels.tolist(),
        evaluation.ranked[:, 0].tolist(),
        evaluation.confidence.tolist(),
        strict=True,
    ):
        writer.writerow([ids[row], names[label], names[ranked], f"{confidence:.4f}"])
    return text.getvalue()


def read_predictions(path: Path, ids: Sequence[str], classes: tuple[str, ...]) -> Evaluation:
    """Read a file that `predictions_csv` wrote; the ranking has only the most probable class.

    Raises:
        DiffLensError: the file is missing or damaged, or has other images or classes; the message names the
            line.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    class_of = {name: k for k, name in enumerate(classes)}
    found: dict[int, tuple[int, int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for number, cells in enumerate(reader):
                where = f"{path}, line {reader.line_num}"
                if number == 0 or not cells:
                    if number == 0 and cells != _COLUMNS:
                        raise DiffLensError(f"{where}: expected the columns {', '.join(_COLUMNS)}")
                    continue
                image, *answer = cells
                if image not in row_of or row_of[image] in found:
                    twice = "is there twice" if image in row_of else "is no test image of the run"
                    raise DiffLensError(f"{where}: {image!r} {twice}")
                found[row_of[image]] = _answer(answer, class_of, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DiffLensError(f"{path} does not hold the run's predictions: {error}") from error
    if not found:
        raise DiffLensError(f"{path} holds no predictions")
    labels, predicted, confidence = zip(*found.values(), strict=True)
    return Evaluation(
        torch.tensor([*found]),
        torch.tensor(labels),
        torch.tensor(predicted)[:, None],
        torch.tensor(confidence),
        classes,
    )


def _answer(cells: Sequence[str], class_of: Mapping[str, int], where: str) -> tuple[int, int, float]:
    """Return class, predicted class and probability of a line."""
    if len(cells) != len(_COLUMNS) - 1:
        raise DiffLensError(f"{where}: expected {', '.join(_COLUMNS)}")
    unknown = [name for name in cells[:2] if name not in class_of]
    if unknown:
        raise DiffLensError(f"{where}: {unknown[0]!r} is no class of the run")
    try:
        probability = float(cells[2])
    except ValueError:
        probability = nan
    if not 0 <= probability <= 1:
        raise DiffLensError(f"{where}: {cells[2]!r} is no probability from 0 to 1")
    return class_of[cells[0]], class_of[cells[1]], probability
