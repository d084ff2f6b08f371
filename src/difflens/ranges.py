"""The range of a number, as a part of its type."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number, or of each number in a tuple of options. Numbers must
    be finite."""

    least: float
    most: float | None = None

    def __str__(self) -> str:
        return (
            f"at least {self.least:g}" if self.most is None else f"between {self.least:g} and {self.most:g}"
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Hold the numbers of a file to the range, too."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        most = self.most or (2**63 - 1 if isinstance(value, int) else sys.float_info.max)
        if not self.least <= value <= most:
            raise ValueError(f"it must be {self}")
        return value


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
