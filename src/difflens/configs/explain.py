"""Options of `difflens explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difflens.configs.options import CheckpointOptions, Count, PlaceOptions, Range, ReadingOptions, RunOptions


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(ReadingOptions, PlaceOptions, CheckpointOptions, RunOptions):
    """Show a backbone's features as pictures, and with --run where the head of a probe looks.

    Principal components of maps over noise steps and nearest neighbours, for a few test images or your own; of an
    attention head or DifFormer its attention, of a linear head which blocks its weights use.
    """

    backbone: str | None = None
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, or random: before any of them. None: the
    run's, or fashion."""
    run: Path | None = None
    """Run directory, or model/ folder, of a probe with a linear or attention head or DifFormer."""
    data: str | None = None
    """Any data that `probe` takes. None: the run's, or fashion."""
    images: tuple[Path, ...] = ()
    """Image files or folders to show. None: test images, one of each class in turn."""
    count: Annotated[int, Range(1, 64)] = 4
    """Show so many images."""
    block: int | None = None
    """Where neighbours are near. None: the backbone's."""
    noise_step: int | None = None
    """Where neighbours are near. None: the backbone's."""
    pool: Count = 2
    """Side that maps are pooled to before neighbours are looked for."""
    neighbours: Annotated[int, Range(1, 12)] = 6
    """Show so many neighbours of an image."""
    limit: Count = 2000
    """Look for neighbours among so many training images, and measure heads on at most so many test images."""
