"""Options of `difflens sweep`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from difflens.choices import ClassifierName, NormaliseName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    CacheOptions,
    DataOptions,
    DryRunOptions,
    PlaceOptions,
    PrecisionOptions,
    ReadingOptions,
    ResumeOptions,
    Side,
)
from difflens.errors import DiffLensError

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(
    DataOptions,
    DryRunOptions,
    CacheOptions,
    ReadingOptions,
    PrecisionOptions,
    PlaceOptions,
    BackboneOptions,
    ResumeOptions,
):
    """Measure the accuracy of each block at each noise step, and recommend a place to read.

    Classifiers train on some training images and are evaluated on others: a fifth of each class, at least one
    image of two, or with --halve half of the new ones. The test split is not used. --resume may add noise
    steps to a finished sweep, and measures only the new ones.
    """

    data: str = "fashion"
    """The images and labels: any data that `probe` takes."""
    classifiers: tuple[ClassifierName, ...] = ("ridge",)
    """ridge (least squares in closed form), logistic or knn. The first one decides the recommendation."""
    budget: Annotated[tuple[str, ...], MAY_CHANGE] = ("5000",)
    """The most images, the most time, or both: 5000, 90s, 10m, 1h, or 5000 10m."""
    halve: bool = False
    """Successive halving: read all places on few images, the better half of them on twice as many, and so on.
    It costs no more than the budget's images at each noise step; noise steps cannot be added later."""
    pool: Side = 2
    """Side, in cells, that maps are average-pooled to."""
    normalise: NormaliseName = "none"
    """none; standard, each channel with mean 0 and variance 1, for knn; or whiten, also without correlation
    between channels, as for `probe`. Statistics are those of the images that classifiers train on."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.normalise == "standard" and "knn" not in self.classifiers:
            yield "ridge and logistic standardise each feature in any case", ("normalise",)

    def check(self) -> None:
        if not self.classifiers:
            raise DiffLensError("there is no classifier: --classifiers takes ridge, logistic and knn")
        self.limits()

    def limits(self) -> tuple[int | None, float | None]:
        """Return the limits of `budget`: images, and seconds; None for no limit."""
        images, seconds = None, None
        for word in self.budget:
            number, unit = (word[:-1], word[-1]) if word[-1:] in _UNITS else (word, "")
            try:
                value = float(number) * _UNITS[unit] if unit else float(int(number))
            except (ValueError, OverflowError):
                value = -1.0
            if not 0 < value <= 10**9:
                raise DiffLensError(
                    f"--budget takes a number of images or a time such as 90s, 10m or 1h, not {word!r}"
                )
            if (seconds if unit else images) is not None:
                raise DiffLensError(f"--budget takes one number of images and one time, not {word!r} besides")
            if unit:
                seconds = value
            else:
                images = int(value)
        return images, seconds
