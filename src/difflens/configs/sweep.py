"""Options of `difflens sweep`."""

import math
from dataclasses import dataclass
from typing import Annotated

from difflens.choices import ClassifierName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    CacheOptions,
    Count,
    PlaceOptions,
    PrecisionOptions,
    ReadingOptions,
    ResumeOptions,
)
from difflens.errors import DiffLensError

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(
    CacheOptions, ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, ResumeOptions
):
    """Measure how well each block at each noise step classifies, and recommend where to read.

    Trains on four fifths of some training images and judges on the others; the test split is not touched. Noise steps
    may be added to a finished sweep with --resume, which measures the new ones only.
    """

    data: str = "fashion"
    """Any data that `probe` takes."""
    classifiers: tuple[ClassifierName, ...] = ("ridge",)
    """The first one decides; ridge is in closed form."""
    budget: Annotated[tuple[str, ...], MAY_CHANGE] = ("5000",)
    """At most so many images, and at most so much time: 5000, 90s, 10m, 1h, or both, as in 5000 10m."""
    pool: Count = 2
    """Side that maps are average-pooled to."""

    def check(self) -> None:
        if not self.classifiers:
            raise DiffLensError("no classifier asked for: --classifiers takes ridge, logistic and knn")
        self.limits()

    def limits(self) -> tuple[int | None, float | None]:
        """What `budget` means: images, and seconds; None for no limit."""
        images, seconds = None, None
        for word in self.budget:
            number, unit = (word[:-1], word[-1]) if word[-1:] in _UNITS else (word, "")
            try:
                value = float(number) * _UNITS[unit] if unit else float(int(number))
            except ValueError:
                value = -1.0
            if not 0 < value < math.inf:
                raise DiffLensError(
                    f"--budget takes a number of images or a time such as 90s, 10m or 1h, not {word!r}"
                )
            if unit:
                seconds = value
            else:
                images = int(value)
        return images, seconds
