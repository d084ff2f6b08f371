"""Calibration: whether predicted probabilities are the shares of predictions that are right."""

import torch
from torch import Tensor

BINS = 15
"""Number of bins of the expected calibration error (Guo et al., 2017)."""


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error (ECE), in [0, 1] (Guo et al., 2017, equation 5).

    Predictions are put into bins of equal width by their confidence. The error is the mean distance between
    the accuracy and the mean confidence of a bin, weighted by its number of predictions. With few predictions
    it is biased upwards, since the accuracy of a bin is uncertain.

    Args:
        confidence: (N,) in [0, 1], the probability of the predicted class; N is at least 1.
        correct: (N,) bool, whether the prediction is right.
        bins: number of bins; bin m holds confidences in ((m - 1) / bins, m / bins], the first one 0 too.
    """
    confidence = confidence.double()
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, number, correct.double() - confidence)
    return float(gaps.abs().sum() / len(confidence))
