"""What the results of `difflens segment` and `difflens detect` share."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A validation image, uint8 (C, H, W), with its true and its predicted masks, uint8 (H, W), or objects."""

    name: str
    image: Tensor
    true: Any
    predicted: Any
