"""Options of `difflens distill`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from difflens.choices import TrainingPrecision
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    Batch,
    Block,
    Count,
    DataOptions,
    Epochs,
    LogOptions,
    Natural,
    NonNegative,
    ReadingOptions,
    ResumeOptions,
)

_RECIPE: dict[str, Any] = {"epochs": 10, "batch_size": 64, "learning_rate": 2e-4, "checkpoint_minutes": 1.0}


@dataclass(frozen=True, kw_only=True)
class DistillConfig(DataOptions, ReadingOptions, BackboneOptions, LogOptions, ResumeOptions):
    """Train a copy of a diffusion U-Net to give, from clean images and in one pass, features without noise.

    The student learns maps that agree with the teacher's at all noise levels. What it gives is a backbone
    with one level, clean images, so no noise step is chosen. No labels are used.
    """

    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)

    data: str = "fashion"
    """Images to train on: any data that `pretrain` takes."""
    blocks: tuple[Block, ...] | None = None
    """Blocks whose maps agree. Those behind the last one are not trained. None: middle and decoder."""
    epochs: Epochs | None = None
    """Epochs of training. None: 10."""
    batch_size: Batch | None = None
    """Images in a step, over all processes. None: 64."""
    learning_rate: NonNegative | None = None
    """Peak learning rate of AdamW, with a linear warm-up and a cosine to zero. None: 2e-4."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW."""
    warmup_steps: Natural = 100
    """Steps over which the learning rate rises linearly; at most a tenth of all steps."""
    augment: Literal["none", "flip"] = "none"
    """flip mirrors an image with probability 1/2; none mirrors no image."""
    precision: TrainingPrecision = "auto"
    """Floating-point format of both networks; weights stay float32. auto: bfloat16 on a GPU, else float32."""
    limit: Count | None = None
    """Train on so many images, drawn by the seed. None: all."""
    checkpoint_minutes: Annotated[NonNegative | None, MAY_CHANGE] = None
    """Minutes between two checkpoints. None: 1."""
    max_minutes: Annotated[NonNegative | None, MAY_CHANGE] = None
    """Stop with a checkpoint after so many minutes; --resume continues. None: train to the end."""

    def recipe(self) -> Mapping[str, Any]:
        return _RECIPE
