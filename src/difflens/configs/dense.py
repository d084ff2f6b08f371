"""Options of `difflens dense`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from difflens.choices import (
    DenseSchedule,
    ExtractorName,
    OnBadAnnotation,
    OptimizerName,
    Precision,
    ScheduleName,
)
from difflens.errors import DiffLensError, listing, require


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What to read, how to train; a field left at None takes the preset's value, or else what fits."""

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them."""
    data: Path | None = None
    """Folder of the data set, in one of the layouts that the README names."""
    train: tuple[Path, Path] | None = None
    """Instead of --data: the folder of training images and that of their masks (detect: and their JSON)."""
    val: tuple[Path, Path] | None = None
    """Likewise, of the images to evaluate on."""
    preset: str | None = None
    """A recipe of `difflens.presets`: paper-ade20k, paper-ade20k-single; to detect paper-coco."""
    extractor: ExtractorName = "frozen"
    """frozen, feedback (DifFeed), or finetuned."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read. None: the last decoder block of each of four strides; the paper's 24, 27, 30, 33 on ADM-256."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at; several are fused. None: the paper's 90 of 1000; 5 of the bundled backbone."""
    feedback_blocks: tuple[int, ...] | None = None
    """Decoder blocks that DifFeed sends back."""
    from_block: int = 1
    """The first block that `finetuned` trains."""
    layer_decay: float = 1.0
    """Of a fine-tuned backbone: each block learns at so many times the rate of the block after it."""
    side: int | None = None
    """Side of the squares that the network sees. None: what the backbone was trained on."""
    width: int | None = None
    """Channels of the head. None: 256 for maps of 512 channels and more, else 64."""
    iterations: int | None = None
    """None: 2000, to detect 3000."""
    batch_size: int | None = None
    """Images per iteration, over all processes. None: 8."""
    optimizer: OptimizerName | None = None
    """None: adamw."""
    learning_rate: float | None = None
    """None: 1e-3; of the linear head 1e-2; of a fine-tuned backbone 3e-4."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float | None = None
    """None: 0.01."""
    lr_schedule: DenseSchedule | None = None
    """Learning rate: (1 - i/n)^0.9, x0.1 at each of `step_at`, cosine to zero, or constant. None: poly, to detect step."""
    step_at: tuple[float, ...] = (0.667, 0.889)
    """Shares of the iterations; 2/3 and 8/9 are those of the usual schedules of Mask R-CNN."""
    warmup_iterations: int | None = None
    """None: 100, but at most a tenth."""
    scale: tuple[float, float] | None = None
    """Training images are scaled by a factor drawn between these, and cropped. None: 0.5 2, to detect 0.8 1.25."""
    flip: bool = True
    """Mirror every second training image."""
    fresh_noise: bool = True
    """Draw new noise in every iteration."""
    label_fraction: float | None = None
    """Train on this share of the images, drawn by the seed."""
    on_bad_annotation: OnBadAnnotation = "error"
    """What to do with annotations that cannot be right."""
    precision: Precision = "float32"
    """Of a frozen backbone."""
    checkpoint_activations: bool = False
    """feedback: compute the second pass again in the backward pass: slower, in less memory."""
    num_head_channels: int = 64
    """Channels per attention head of an OpenAI checkpoint, which its weights do not show."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Side of the images that the backbone was trained on, where nothing says so."""
    checkpoint_minutes: float = 5.0
    """Write a checkpoint if the last one is this old."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    seed: int = 0
    """Of weights, order, augmentation and noise."""
    resume: bool = False
    """Go on with what is in the run directory."""

    def filled(self, presets: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]) -> Self:
        """With every None that the preset or the defaults know filled in; DiffLensError for what is out of range."""
        if self.preset is not None and self.preset not in presets:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets))}")
        recipe = {
            "learning_rate": 3e-4 if self.extractor == "finetuned" else 1e-3,
            **defaults,
            **(presets[self.preset] if self.preset else {}),
        }
        full = replace(self, **{key: value for key, value in recipe.items() if getattr(self, key) is None})
        idle = [
            option
            for option, extractor, asked in (
                ("--layer-decay", "finetuned", full.layer_decay != 1),
                ("--from-block", "finetuned", full.from_block != 1),
                ("--feedback-blocks", "feedback", full.feedback_blocks is not None),
            )
            if asked and full.extractor != extractor
        ]
        if idle:
            raise DiffLensError(
                f"the {full.extractor} extractor has no use for {listing(idle)}: leave that out"
            )
        if not all(0 <= at <= 1 for at in full.step_at):
            raise DiffLensError(
                f"--step-at takes shares of the iterations, such as 0.667 0.889, not {listing(full.step_at)}"
            )
        low, high = full.scale or (1.0, 1.0)
        require(
            iterations=(full.iterations, 1, None), batch_size=(full.batch_size, 1, None), side=(full.side, 1, None),
            learning_rate=(full.learning_rate, 0, None), weight_decay=(full.weight_decay, 0, None),
            momentum=(full.momentum, 0, 1), warmup_iterations=(full.warmup_iterations, 0, None),
            width=(full.width, 1, None), smallest_scale=(low, 0.05, 1), largest_scale=(high, low, 20),
            label_fraction=(full.label_fraction, 0, 1), layer_decay=(full.layer_decay, 0, 1),
            workers=(full.workers, 0, None), checkpoint_minutes=(full.checkpoint_minutes, 0, None),
            seed=(full.seed, 0, 2**31),
        )  # fmt: skip
        if (full.data is None) == (full.train is None) or (full.train is None) != (full.val is None):
            raise DiffLensError("name the data: a folder with --data, or folders with both --train and --val")
        return full
