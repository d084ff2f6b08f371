"""Counts of predicted by true classes."""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, true: Tensor, classes: int, ignored: int | None = None) -> Tensor:
    """Return the number of predictions by true class (rows) and predicted class (columns), (K, K) long.

    Args:
        predicted, true: classes in [0, K), of the same shape.
        classes: K.
        ignored: the value in `true` of what has no class, which is not counted.
    """
    cells = true.long() * classes + predicted.long()
    if ignored is not None:
        cells = cells[true != ignored]
    return torch.bincount(cells.flatten(), minlength=classes**2).view(classes, classes)
