"""Options of `difflens match`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from difflens import presets
from difflens.choices import Estimate, PairSplit
from difflens.configs.options import (
    BackboneOptions,
    Block,
    Count,
    NoiseStep,
    Options,
    PrecisionOptions,
    Range,
    RunOptions,
    Share,
    Side,
    Times,
)
from difflens.errors import DiffLensError

_OF_PICTURES = ("points", "grid", "mutual")
_OF_DATA = ("split", "limit", "alpha")

Temperature = Annotated[float, Range(1e-4, 100)]


@dataclass(frozen=True, kw_only=True)
class CorrespondenceOptions(Options):
    """The features that positions are compared by."""

    block: Block | None = None
    """Block whose features are compared. None: the preset's, or chosen by the backbone."""
    noise_step: NoiseStep | None = None
    """Noise level at which they are read, in the unit of the backbone's noise process. None: the preset's, or
    chosen by the backbone."""
    draws: Times | None = None
    """Number of noise samples that features are averaged over. None: the preset's, or 1."""
    side: Side | None = None
    """Side of the square, in pixels, that whole pictures are resized to; larger squares give finer maps.
    None: the preset's, or the side that the backbone was trained on."""

    def recipe(self) -> Mapping[str, Any]:
        return {"draws": 1, **self.PRESETS.get(getattr(self, "preset", None) or "", {})}


@dataclass(frozen=True, kw_only=True)
class MatchConfig(CorrespondenceOptions, PrecisionOptions, BackboneOptions, RunOptions):
    """Find points of one picture in another by the similarity of features, without training.

    Give two pictures, or with --data a folder in SPair-71k's layout, whose known points are found and
    counted (PCK). Pictures are resized to squares as a whole.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.MATCH
    POSITIONAL: ClassVar[tuple[str, ...]] = ("pictures",)

    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Two image files: points of the first are found in the second."""
    points: tuple[str, ...] = ()
    """Points of the first picture as x,y in its pixels, from the upper left: --points 120,80 64,200. None: a
    regular grid of --grid x --grid points, of which those that match back are shown."""
    grid: Annotated[int, Range(1, 64)] = 8
    """Points along each side of the grid that is taken without --points."""
    mutual: bool = False
    """Leave out points whose match does not match back to within one cell of the feature map."""
    data: Path | None = None
    """Folder with JPEGImages/CLASS/*.jpg and PairAnnotation/SPLIT/*.json, as SPair-71k has it."""
    split: PairSplit = "test"
    """trn, val or test: the folder of pairs that is read."""
    limit: Count | None = None
    """The most pairs of each class, drawn by the seed. None: all."""
    alpha: Share = 0.1
    """A point is correct within this share of the longer side of the object's box, or of the picture."""
    estimate: Estimate = "argmax"
    """argmax: the most similar position. soft-argmax: the mean of the positions around it, weighted by the
    softmax of their similarity."""
    temperature: Temperature | None = None
    """soft-argmax: temperature of the softmax. None: 0.02."""
    window: Annotated[float, Range(0.1, 1000)] | None = None
    """soft-argmax: cells of the feature map to each side of the most similar one that are averaged. None:
    3."""
    preset: str | None = None
    """dift-semantic, dift-geometric or dift-temporal: block, noise step, draws and side of DIFT (Tang et al.,
    2023), for OpenAI's 256x256_diffusion_uncond.pt."""

    def recipe(self) -> Mapping[str, Any]:
        return {**super().recipe(), "temperature": 0.02, "window": 3.0}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.data is not None:
            yield "with --data the annotations name the points", _OF_PICTURES
        else:
            yield "two pictures have no true points to count", _OF_DATA
        if self.points:
            yield "--points name the points", ("grid",)
        if self.estimate == "argmax":
            yield "argmax takes the most similar position alone", ("temperature", "window")

    def check(self) -> None:
        if self.data is not None and self.pictures:
            raise DiffLensError("give two pictures or --data, not both")
        if self.data is None and len(self.pictures) != 2:
            raise DiffLensError(
                f"match reads two pictures, and {len(self.pictures)} are given: difflens match A.jpg B.jpg "
                "--points x,y, or --data FOLDER in SPair-71k's layout"
            )
