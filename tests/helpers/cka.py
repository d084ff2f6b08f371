"""CKA, term by term."""

import torch
from torch import Tensor


def direct_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. (2012), equation 5, term by term."""
    k, l, n = x.double() @ x.double().T, y.double() @ y.double().T, len(x)  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    ones = torch.ones(n, dtype=torch.float64)
    terms = (k @ l).trace() + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((terms - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))
