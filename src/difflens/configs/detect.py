"""Options of `difflens detect`."""

from dataclasses import dataclass
from typing import Any

from difflens import presets
from difflens.choices import DetectionHeadName
from difflens.configs.dense import DenseConfig
from difflens.errors import require

_DEFAULTS: dict[str, Any] = {
    "iterations": 3000, "batch_size": 8, "optimizer": "adamw", "weight_decay": 0.01, "lr_schedule": "step",
    "scale": (0.8, 1.25), "proposals": 256,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DenseConfig):
    """Train Mask R-CNN on diffusion features and evaluate it once on the validation images."""

    head: DetectionHeadName | None = None
    """mask-rcnn, or faster-rcnn for boxes alone. None: what the data has."""
    proposals: int | None = None
    """Regions that are looked at in an image. None: 256, the paper's preset 1000."""

    def resolved(self) -> "DetectConfig":
        """With every None that the preset knows filled in."""
        full = self.filled(presets.DETECT, _DEFAULTS)
        require(proposals=(full.proposals, 4, None))
        return full
