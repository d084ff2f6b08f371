"""Options of `difflens segment`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens import presets
from difflens.choices import SegmentationHeadName
from difflens.configs.dense import DenseConfig
from difflens.errors import DiffLensError, require

_DEFAULTS: dict[str, Any] = {
    "iterations": 2000, "batch_size": 8, "optimizer": "adamw", "weight_decay": 0.01, "lr_schedule": "poly",
    "scale": (0.5, 2.0),
}  # fmt: skip


# a single layer learns slowly at what suits UPerNet (seen in its training loss on scenes)
_LINEAR: dict[str, Any] = {"learning_rate": 1e-2}


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(DenseConfig):
    """Train a segmentation head on diffusion features and evaluate it once on the validation images."""

    head: SegmentationHeadName = "upernet"
    """upernet, or linear: one 1x1 convolution."""
    classes: Path | None = None
    """With --train and --val: the list of classes, one a line."""
    eval_scales: tuple[float, ...] = (1.0,)
    """Scales of the images in the evaluation, whose probabilities are averaged; (0.5 0.75 1 1.25 1.5 1.75) is usual."""
    eval_flip: bool = False
    """Also segment mirrored images in the evaluation."""

    def resolved(self) -> "SegmentConfig":
        """With every None that the preset knows filled in."""
        alone = self.head == "linear" and self.extractor != "finetuned"
        full = self.filled(presets.SEGMENT, _DEFAULTS | (_LINEAR if alone else {}))
        require(smallest_eval_scale=(min(full.eval_scales, default=0), 0.1, 10))
        if (full.train is None) != (full.classes is None):
            raise DiffLensError("--train and --val go with --classes, the list of classes")
        return full
