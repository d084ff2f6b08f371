"""Options of `difflens explain`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difflens.backbones.config import BACKBONE_OPTIONS
from difflens.configs.options import (
    Block,
    CheckpointOptions,
    Count,
    DataOptions,
    NoiseStep,
    PlaceOptions,
    Range,
    ReadingOptions,
    RunOptions,
    Side,
)

MOST_IMAGES = 64
"""The most images of a report."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(DataOptions, ReadingOptions, PlaceOptions, CheckpointOptions, RunOptions):
    """Show a backbone's features as pictures and, with --run, what the head of a probe uses.

    Shows principal components of maps over noise steps, and nearest neighbours, of a few test images or of
    your own images. With --run also: the attention of an attention head or DifFormer, the weights of mix, or
    the blocks that a linear head's weights use.
    """

    backbone: str | None = None
    """fashion, photos, a diffusers folder, an OpenAI checkpoint, a hub id or timm:NAME; with the prefix
    random: the same network untrained. None: the run's, or the bundled network for the images' channels."""
    run: Path | None = None
    """Run directory, or model/ folder, of a probe with a linear head, an attention head, DifFormer or mix.
    None: show features alone."""
    data: str | None = None
    """The images and labels: any data that `probe` takes. None: the run's, or fashion."""
    images: tuple[Path, ...] = ()
    """Image files or folders to show. Without it: test images, one of each class in turn."""
    count: Annotated[int, Range(1, MOST_IMAGES)] | None = None
    """Number of images to show. None: all of --images, and else 4."""
    block: Block | None = None
    """Block in whose features nearest neighbours are searched. None: chosen by the backbone."""
    noise_step: NoiseStep | None = None
    """Noise level at whose features nearest neighbours are searched, in the unit of the backbone's noise
    process. None: chosen by the backbone."""
    pool: Side = 2
    """Side, in cells, that maps are average-pooled to for the search of neighbours."""
    neighbours: Annotated[int, Range(1, 12)] = 6
    """Number of nearest neighbours to show for each image."""
    limit: Count = 2000
    """The most training images among which neighbours are searched, and the most test images to measure heads
    on."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.run is not None:
            yield "a run says how its backbone is read", BACKBONE_OPTIONS
            if self.data is None:
                yield "the data of a run are split as it says", ("val_fraction",)
