"""How a classifier is trained."""

from dataclasses import dataclass

from difflens.choices import Augmentation, OnBadImage, OptimizerName, ScheduleKind


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a probe is trained; the same for every head and extractor."""

    epochs: int = 20
    batch_size: int = 128
    """Images per step, over all processes."""
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    lr_schedule: ScheduleKind = "cosine"
    """Learning rate: cosine to zero, x0.1 every `step_epochs`, or constant."""
    step_epochs: int = 7
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Blend pairs of inputs (cached features, or images) and their labels, with a share drawn from
    Beta(mixup, mixup) for every batch (Zhang et al., 2018). 0: off."""
    augment: Augmentation = "none"
    """none; flip; crop: the paper's random resized crop and flip. With none, a frozen extractor runs once."""
    fresh_noise: bool = True
    """Draw new noise in every epoch where features are not cached."""
    seed: int = 0
    """Of the head's weights, the order of the images, the augmentation and the noise."""
    on_bad_image: OnBadImage = "error"
    """What to do with an image that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    layer_decay: float = 1.0
    """Of a fine-tuned backbone: each block learns at so many times the rate of the block after it, the last block at so
    many times the head's (Clark et al., 2020)."""
