"""Recipes, one line each."""

from typing import Any

# U-Nets to pre-train: channels per level, residual blocks per level, levels with attention, channels per head.
# Everything else follows ADM (scale-shift norm).
UNETS: dict[str, dict[str, Any]] = {
    "tiny": {"side": 16, "channels": (16, 32), "layers": 1, "attention": (1,), "head": 16, "groups": 8},
    "fashion-32": {"side": 32, "channels": (32, 64, 128, 96), "layers": 2, "attention": (3,), "head": 16,
                   "groups": 8, "embedding": 64, "in_channels": 1},
}  # fmt: skip

# Pre-training recipes: a U-Net of the table above and what differs from PretrainConfig's defaults.
PRETRAIN: dict[str, dict[str, Any]] = {
    "tiny": {"unet": "tiny", "epochs": 1, "batch_size": 64},
    "fashion-32": {"unet": "fashion-32", "epochs": 200, "batch_size": 256, "learning_rate": 6e-4, "flip": True},
}


def unet_config(name: str) -> dict[str, Any]:
    """The `UNet2DModel` arguments of a U-Net preset."""
    preset = UNETS[name]
    levels = range(len(preset["channels"]))
    attention = preset["attention"]
    channels = preset.get("in_channels", 3)
    return {
        "sample_size": preset["side"],
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": preset["layers"],
        "block_out_channels": preset["channels"],
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in levels),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(levels)),
        "attention_head_dim": preset["head"],
        "norm_num_groups": preset["groups"],
        "time_embedding_dim": preset.get("embedding"),
        "resnet_time_scale_shift": "scale_shift",
    }
