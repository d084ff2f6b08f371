"""The range of a number, as a part of its type."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number, or of each number in a tuple of options. Numbers must
    be finite."""

    least: float
    most: float | None = None

    def __contains__(self, value: float) -> bool:
        return self.least <= value < inf and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        least = shown_number(self.least)
        return f"at least {least}" if self.most is None else f"between {least} and {shown_number(self.most)}"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Hold the numbers of a file to the range, too."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        largest = 2**63 - 1 if isinstance(value, int) else inf
        if value not in self or value > largest:
            raise ValueError(f"it must be {self}")
        return value


def shown_number(value: float) -> str:
    """Return a number for a message."""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"
    return f"{value:g}"


Natural = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**31)]
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Pixels = Annotated[int, Range(1, 2**13)]
"""The side of an image."""
Width = Annotated[int, Range(1, 2**16)]
"""Channels of a layer."""
Depth = Annotated[int, Range(1, 1000)]
"""A number of layers, or of noise samples."""
