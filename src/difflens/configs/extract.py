"""Options of `difflens extract`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflens.choices import OnBadImage, Precision, ScheduleName, SplitName, StoreFormat, StoreType
from difflens.errors import DiffLensError, require

_SPLITS: tuple[SplitName, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Write the features of a data set at chosen blocks and noise steps into a folder.

    A stopped extraction goes on with --resume, and ends with the same bytes; noise steps may be added to a finished
    one that way. `difflens probe --store` trains heads on the result.
    """

    out: Path
    """Folder of the store."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them."""
    data: str = "fashion"
    """Any data that `probe` takes."""
    unlabelled: bool = False
    """Take all images of `data` as one split without labels, from any folder of images."""
    splits: tuple[SplitName, ...] = _SPLITS
    """Which splits to read."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read; None: those that suit DifFormer."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at; None: likewise."""
    pool: int = 0
    """Average-pool larger maps to this side; 0: keep them whole."""
    dtype: StoreType = "float16"
    """Of the stored numbers."""
    draws: int = 1
    """Average the maps over so many noises."""
    limit: int | None = None
    """Only the first so many training images, as for `probe`; of a single split, so many of that."""
    seed: int = 0
    """Of the noise."""
    format: StoreFormat = "safetensors"
    """parquet is a table for other programs; difflens does not read it back."""
    shard_megabytes: int = 128
    """About how large each file is, and so how much a stop may lose and how much memory a noise step takes."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Complete the store in `out`."""

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            pool=(self.pool, 0, None), draws=(self.draws, 1, None), limit=(self.limit, 1, None),
            seed=(self.seed, 0, 2**31), shard_megabytes=(self.shard_megabytes, 1, None),
            num_head_channels=(self.num_head_channels, 1, None), image_size=(self.image_size, 1, None),
            workers=(self.workers, 0, None),
        )  # fmt: skip
        if not self.splits:
            raise DiffLensError("no split asked for: --splits takes train, test or both")
        if self.unlabelled and self.splits != _SPLITS:
            raise DiffLensError("--unlabelled takes all images as one split: leave out --splits")
        if self.format == "parquet" and self.dtype == "bfloat16":
            raise DiffLensError("parquet knows no bfloat16: ask for float16 or float32")
