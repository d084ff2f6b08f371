"""The networks of the pre-training presets."""

from typing import Any, Literal

from diffusers import UNet2DModel

from difflens.backbones.encoder import ArgumentName, EncoderConfig
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.errors import DiffLensError, listing
from difflens.presets import ENCODER_STRIDE, ENCODERS, PATCH, PRETRAIN, UNETS


def encoder_config(name: str, kind: Literal["resnet", "vit"], side: int | None = None) -> EncoderConfig:
    """Return the encoder whose size matches the U-Net preset `name`.

    Args:
        kind: the architecture of the encoder.
        side: the side of the images in pixels; None: the preset's.

    Raises:
        DiffLensError: there is no encoder of this size, or `side` is not a multiple of its stride.
    """
    if name not in ENCODERS:
        raise DiffLensError(
            f"there are no encoders of the size of the U-Net {name}: only diffusion trains at it. The other "
            f"methods have the presets {listing(list(ENCODERS))}"
        )
    preset = UNETS[name]
    side = side or preset["side"]
    if side % ENCODER_STRIDE:
        raise DiffLensError(f"image-size {side} must be a multiple of {ENCODER_STRIDE}, the encoder's stride")
    arguments: dict[ArgumentName, Any]
    if kind == "resnet":
        widths = ENCODERS[name]["resnet"]
        arguments = {
            "layers": (1, 1, 1, 1),
            "channels": widths,
            "stem_type": "deep",
            "stem_width": widths[0] // 2,
        }
        return EncoderConfig("resnet18", arguments, preset.get("in_channels", 3), side)
    width, depth, heads = ENCODERS[name]["vit"]
    arguments = {
        "img_size": side,
        "patch_size": PATCH,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "dynamic_img_size": True,
    }
    return EncoderConfig("vit_tiny_patch16_224", arguments, preset.get("in_channels", 3), side)


def build_unet(config: PretrainConfig) -> UNet2DModel:
    """Return the U-Net of a resolved configuration, with fresh weights; errors as in `unet_config`."""
    fields = unet_config(PRETRAIN[config.preset]["unet"], given(config.learned_variance), config.image_size)
    return UNet2DModel(**fields)


def unet_config(name: str, learned_variance: bool = False, side: int | None = None) -> dict[str, Any]:
    """Return the `UNet2DModel` arguments of a U-Net preset; with learned variance it has twice the output
    channels.

    Args:
        side: the side of the images in pixels; None: the preset's.

    Raises:
        DiffLensError: `side` is not a multiple of the network's largest stride.
    """
    preset = UNETS[name]
    levels = range(len(preset["channels"]))
    attention = preset["attention"]
    channels = preset.get("in_channels", 3)
    side, stride = side or preset["side"], 2 ** levels[-1]
    if side % stride:
        raise DiffLensError(
            f"image-size {side} cannot be halved down to the deepest level of the U-Net {name}: it must be a "
            f"multiple of {stride}"
        )
    resampling, down, up = (
        ("resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if preset.get("residual")
        else ("conv", "DownBlock2D", "UpBlock2D")
    )
    return {
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels * (2 if learned_variance else 1),
        "layers_per_block": preset["layers"],
        "block_out_channels": preset["channels"],
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else down for i in levels),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else up for i in reversed(levels)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "attention_head_dim": preset["head"],
        "norm_num_groups": preset["groups"],
        # with scale_shift, diffusers gives the middle attention a norm only if this is set
        "attn_norm_num_groups": preset["groups"] if preset.get("residual") else None,
        "time_embedding_dim": preset.get("embedding", 4 * preset["channels"][0]),
        "resnet_time_scale_shift": "scale_shift",
    }
