"""Options of `difflens fidelity`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.choices import OnBadImage, ScheduleName
from difflens.errors import require


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
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
    limit: int | None = None
    """Only so many images of each set, chosen at random."""
    seed: int = 0
    """Of the noise, of KID's subsets and of the choice of images."""
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    inception_weights: Path | None = None
    """The weights that torch-fidelity would download."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    out: Path | None = None
    """Run directory that keeps the figures, for `report`. None: they are printed only."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read; torch-fidelity, for inception, knows no skipping."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            limit=(self.limit, 2, None), seed=(self.seed, 0, 2**31), kid_subsets=(self.kid_subsets, 1, None),
            kid_subset_size=(self.kid_subset_size, 2, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None), workers=(self.workers, 0, None),
        )  # fmt: skip
