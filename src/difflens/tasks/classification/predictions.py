"""predictions.csv: the prediction of a classifier for each test image."""

from collections.abc import Sequence
from pathlib import Path

import torch

from difflens.data.sources.table import SEPARATOR
from difflens.errors import DiffLensError
from difflens.metrics.classification import Evaluation
from difflens.metrics.multi_label import THRESHOLD, MultiLabelEvaluation
from difflens.run.reading import read_table, short
from difflens.run.text import csv_text, on_disk, unguarded


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
        DiffLensError: the file is missing or damaged, or has other images or classes; the message names the
            line.
    """
    row_of = {on_disk(name): row for row, name in enumerate(ids)}
    class_of = {on_disk(name): k for k, name in enumerate(classes)}
    known = {"image": row_of, "class": class_of, "predicted": class_of}
    lines = {number: unguarded(row) for number, row in read_table(path, [*known, "probability"]).items()}
    images: set[str] = set()
    for number, line in lines.items():
        unknown = [column for column, values in known.items() if line[column] not in values]
        column = unknown[0] if unknown else "" if _is_share(line["probability"]) else "probability"
        if column:
            raise DiffLensError(f"{path}, line {number}: {column} is {short(line[column])}, not of this run")
        if line["image"] in images:
            raise DiffLensError(f"{path}, line {number}: {short(line['image'])} is there twice")
        images.add(line["image"])
    if not lines:
        raise DiffLensError(f"{path} holds no predictions")
    return Evaluation(
        torch.tensor([row_of[line["image"]] for line in lines.values()]),
        torch.tensor([class_of[line["class"]] for line in lines.values()]),
        torch.tensor([[class_of[line["predicted"]]] for line in lines.values()]),
        torch.tensor([float(line["probability"]) for line in lines.values()]),
        classes,
    )


def multi_label_csv(evaluation: MultiLabelEvaluation, ids: Sequence[str]) -> str:
    """Return one line for each test image: its name, its labels, the classes of a probability of at least
    `THRESHOLD`, and the probability p(CLASS) of each class.

    Args:
        ids: the names of the images of the whole split.
    """
    names = evaluation.classes
    rows: list[list[str]] = [["image", "labels", "predicted", *map(_column, names)]]
    for row, labels, probabilities in zip(
        evaluation.rows.tolist(),
        evaluation.labels.tolist(),
        evaluation.probabilities.tolist(),
        strict=True,
    ):
        true = SEPARATOR.join(name for name, there in zip(names, labels, strict=True) if there)
        predicted = SEPARATOR.join(
            name for name, share in zip(names, probabilities, strict=True) if share >= THRESHOLD
        )
        rows.append([ids[row], true, predicted, *map(repr, probabilities)])
    return csv_text(rows)


def read_multi_label(path: Path, ids: Sequence[str], classes: tuple[str, ...]) -> MultiLabelEvaluation:
    """Read a file that `multi_label_csv` wrote.

    Raises:
        DiffLensError: as `read_predictions`.
    """
    row_of = {on_disk(name): row for row, name in enumerate(ids)}
    class_of = {on_disk(name): k for k, name in enumerate(classes)}
    truths, shares = dict[int, list[bool]](), list[list[float]]()
    columns = [on_disk(_column(name)) for name in classes]
    for number, row in read_table(path, ["image", "labels", *columns]).items():
        line = unguarded(row)
        image, true, probabilities = line["image"], line["labels"], [line[name] for name in columns]
        labels = true.split(SEPARATOR) if true else []
        wrong = [
            f"image is {short(image)}" * (image not in row_of),
            *(f"labels is {short(true)}" for label in labels if label not in class_of),
            *(f"probability is {short(share)}" for share in probabilities if not _is_share(share)),
        ]
        if any(wrong):
            raise DiffLensError(f"{path}, line {number}: {next(filter(None, wrong))}, not of this run")
        if row_of[image] in truths:
            raise DiffLensError(f"{path}, line {number}: {short(image)} is there twice")
        truths[row_of[image]] = [name in labels for name in class_of]
        shares.append([float(share) for share in probabilities])
    if not truths:
        raise DiffLensError(f"{path} holds no predictions")
    return MultiLabelEvaluation(
        torch.tensor([*truths]),
        torch.tensor([*truths.values()]),
        torch.tensor(shares, dtype=torch.float64),
        classes,
    )


def _column(name: str) -> str:
    """Return the column of a class' probability, which no other column can be called."""
    return f"p({name})"


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
