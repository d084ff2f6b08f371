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
    "fashion-32": {
        "unet": "fashion-32",
        "epochs": 200,
        "batch_size": 256,
        "learning_rate": 6e-4,
        "flip": True,
    },
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


# How each head trains if nothing else is said: AdamW and cosine. Chosen for the bundled backbone and 10,000 labels, on
# training images of Fashion-MNIST outside the bundled subset.
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 3e-3, "epochs": 20},
    "mlp": {"learning_rate": 1e-3, "epochs": 12, "mixup": 0.5},
    "cnn": {"learning_rate": 1e-3, "epochs": 4, "mixup": 0.5},
    "attention": {"learning_rate": 3e-3, "epochs": 12, "mixup": 0.5},
    "difformer": {"learning_rate": 3e-3, "epochs": 6, "mixup": 0.5},
    "diffeed": {"learning_rate": 2e-3, "epochs": 2, "augment": "flip"},
}

# The paper's runs on ImageNet-1k with ADM-256: SGD without momentum or weight decay, learning rate x0.1 every 7 of 28
# epochs, batch 32 on each of 4 GPUs (DifFeed: 4 on each).
_PAPER: dict[str, Any] = {
    "optimizer": "sgd", "weight_decay": 0.0, "lr_schedule": "step", "step_epochs": 7, "warmup_epochs": 0.0,
    "epochs": 28, "batch_size": 128, "augment": "crop", "mixup": 0.0, "blocks": (24,), "noise_steps": (150,),
}  # fmt: skip
PROBE: dict[str, dict[str, Any]] = {
    "paper-linear": {**_PAPER, "head": "linear", "learning_rate": 1e-2},  # 64.9 top-1
    "paper-attention": {**_PAPER, "head": "attention", "learning_rate": 5e-2},  # 74.6
    "paper-difformer": {**_PAPER, "head": "difformer", "learning_rate": 5e-2, "blocks": (19, 24, 30),
                        "noise_steps": (90, 150, 300)},  # 76.0
    "paper-diffeed": {**_PAPER, "head": "diffeed", "learning_rate": 1e-2, "batch_size": 16,
                      "feedback_blocks": (21, 24, 27, 30, 33, 36)},  # 77.0
}  # fmt: skip
