"""Options of `difflens fidelity`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflens.backbones.config import BACKBONE_OPTIONS
from difflens.configs.options import (
    MAY_CHANGE,
    Block,
    CheckpointOptions,
    DataOptions,
    DryRunOptions,
    NoiseStep,
    Range,
    ReadingOptions,
    SeedOptions,
)


@dataclass(frozen=True, kw_only=True)
class FidelityConfig(DataOptions, DryRunOptions, ReadingOptions, CheckpointOptions, SeedOptions):
    """Measure the distance of generated images to real ones in a feature space of your choice."""

    samples: Path
    """Folder of generated images, or a run directory of `difflens generate`."""
    data: str = "fashion"
    """The real images: any data that `probe` takes, or a folder of images in any arrangement."""
    split: Literal["train", "test"] = "test"
    """Split of the real images, if the data has splits."""
    features: str | None = None
    """The feature space: any backbone that `probe` takes; the folder of a trained model, for the input of its
    classifier; or inception, Inception-v3 as in the standard FID. None: the bundled network for the real
    images' channels."""
    block: Block | None = None
    """Block of the backbone whose maps, averaged over all positions, are the features. None: chosen by the
    backbone."""
    noise_step: NoiseStep | None = None
    """Noise level at which the block is read, in the unit of the backbone's noise process. None: chosen by
    the backbone."""
    reference_distances: Annotated[bool, tyro.conf.arg(aliases=("--ruler",))] = False
    """Also measure the reference distances: those of at most as many images of the other split, without and
    with a little noise. For data without a split: those of the same images with a little noise."""
    limit: Annotated[int, Range(2, 10**9)] | None = None
    """The most images of each set, drawn by the seed. None: all."""
    kid_subsets: Annotated[int, Range(1, 10**5)] = 100
    """Number of subsets of images over which KID is averaged."""
    kid_subset_size: Annotated[int, Range(2, 10**4)] = 1000
    """Number of images in each subset."""
    out: Annotated[Path | None, MAY_CHANGE] = None
    """Run directory for the results, which `report` reads. None: print them only."""
    device: Annotated[Literal["cpu"] | None, MAY_CHANGE] = None
    """cpu keeps the computation off the GPU."""
    inception_weights: Path | None = None
    """inception: file of the weights. None: torch-fidelity downloads them."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.features == "inception":
            yield "inception has one feature space", ("block", "noise_step", *BACKBONE_OPTIONS)
            yield "inception reads every image, in this process", ("on_bad_image", "workers")
        else:
            yield "only --features inception reads it", ("inception_weights",)
