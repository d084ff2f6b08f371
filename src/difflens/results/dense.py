"""An example image, as the results of `difflens segment` and `difflens detect` show it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A validation image with its labels and predictions.

    Attributes:
        name: its name in the data set.
        image: (C, H, W) uint8.
        true, predicted: masks, (H, W) uint8, or objects.
    """

    name: str
    image: Tensor
    true: Any
    predicted: Any
