"""predictions.csv: the prediction of a classifier for each test image."""

from collections.abc import Sequence
from pathlib import Path

import torch

from difflens.errors import DiffLensError
from difflens.metrics.classification import Evaluation
from difflens.run.text import csv_rows, csv_text, on_disk


def predictions_csv(evaluation: Evaluation, ids: Sequence[str]) -> str:
    """Return one line for each test image: its name, true class, predicted class and the probability of the
    latter.

    Args:
        ids: the names of the images of the whole split.
    """
    rows: list[list[str]] = [["image", "class", "predicted", "probability"]]
    names = evaluation.classes
    for row, label, ranked, confidence in zip(
        evaluation.rows.tolist(),
        evaluation.labels.tolist(),
        evaluation.ranked[:, 0].tolist(),
        evaluation.confidence.tolist(),
        strict=True,
    ):
        rows.append([ids[row], names[label], names[ranked], f"{confidence:.4f}"])
    return csv_text(rows)


def read_predictions(path: Path, ids: Sequence[str], classes: tuple[str, ...]) -> Evaluation:
    """Read a file that `predictions_csv` wrote; the ranking has only the most probable class.

    Raises:
        DiffLensError: the file is missing or damaged, or has other images or classes.
    """
    row_of = {on_disk(name): row for row, name in enumerate(ids)}
    class_of = {on_disk(name): k for k, name in enumerate(classes)}
    try:
        lines = csv_rows(path.read_bytes().decode())
        return Evaluation(
            torch.tensor([row_of[line["image"]] for line in lines]),
            torch.tensor([class_of[line["class"]] for line in lines]),
            torch.tensor([[class_of[line["predicted"]]] for line in lines]),
            torch.tensor([float(line["probability"]) for line in lines]),
            classes,
        )
    except (OSError, KeyError, ValueError) as error:
        raise DiffLensError(f"{path} does not hold the run's predictions: {error!r}") from error
