"""Options of `difflens explore`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difflens.configs.options import (
    BackboneOptions,
    PlaceOptions,
    PrecisionOptions,
    Range,
    ReadingOptions,
    RunOptions,
    Times,
)


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(ReadingOptions, PrecisionOptions, PlaceOptions, BackboneOptions, RunOptions):
    """Write a page on which a position of one picture shows what is similar to it in every picture.

    The page is one HTML file, explore.html, that needs only a browser. Two sliders choose block and noise
    level.
    """

    images: tuple[Path, ...]
    """Image files or folders to show, in this order."""
    count: Annotated[int, Range(1, 48)] = 12
    """The most pictures to show. Of more, some evenly over their order are shown."""
    sweep: Path | None = None
    """Run directory of a sweep of this backbone. Its heat map stands on the page, to choose places in, and
    its blocks and noise levels are shown by default."""
    cells: Annotated[int, Range(2, 64)] = 24
    """Positions along a side: larger maps are average-pooled to it. The page grows with its square."""
    draws: Times = 1
    """Number of noise samples that features are averaged over."""
