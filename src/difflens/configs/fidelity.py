"""Options of `difflens fidelity`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from difflens.configs.options import MAY_CHANGE, CheckpointOptions, Count, Range, ReadingOptions, SeedOptions


@dataclass(frozen=True, kw_only=True)
class FidelityConfig(ReadingOptions, CheckpointOptions, SeedOptions):
    """Compare generated images with real ones, in a feature space of your choice."""

    samples: Path
    """Folder of generated images, or a run directory of `difflens generate`."""
    data: str = "fashion"
    """The real images: any data that `probe` takes, or a folder of images in any arrangement."""
    split: Literal["train", "test"] = "test"
    """Which of the real images."""
    features: str = "fashion"
    """Any backbone that `probe` takes; a trained model's folder, whose classifier's input is the space; or inception."""
    block: int | None = None
    """Block of the backbone, averaged over places. None: the backbone's choice."""
    noise_step: int | None = None
    """Noise step at which it is read. None: likewise."""
    ruler: bool = False
    """Also measure as many images of the other split, and these with a little noise, to compare with."""
    limit: Annotated[int, Range(2)] | None = None
    """Only so many images of each set, chosen at random."""
    kid_subsets: Count = 100
    """Subsets of images over which KID is averaged."""
    kid_subset_size: Annotated[int, Range(2)] = 1000
    """Images in each subset."""
    out: Annotated[Path | None, MAY_CHANGE] = None
    """Run directory that keeps the figures, for `report`. None: they are printed only."""
    device: Annotated[Literal["cpu"] | None, MAY_CHANGE] = None
    """cpu keeps the computation off the GPU."""
    inception_weights: Path | None = None
    """The weights that torch-fidelity would download."""
