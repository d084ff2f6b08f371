"""OpenAI's guided-diffusion ("ADM") checkpoints (Dhariwal and Nichol, 2021), read and converted to diffusers.

Reading runs no code, and the conversion is exact. A state dict determines its network except for the width of
an attention head and the side of the images. Both naming schemes number the same modules in the same order.
The conversion is therefore one table of modules and one table of their layers. Only the fused rows of query,
key and value are rearranged.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor

from difflens.choices import AttentionOrder, ScheduleName
from difflens.errors import DiffLensError, listing

# Image side by channel multipliers, as in guided-diffusion's script_util.create_model.
_IMAGE_SIDES = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
}


@dataclass(frozen=True)
class Released:
    """A model of OpenAI whose flags differ from those of its others (guided-diffusion's README).

    Attributes:
        file: its name.
        num_heads: heads at every width; None: heads of 64 channels.
        order: the order of the rows of query, key and value.
        noise_schedule: the schedule of its training.
    """

    file: str
    num_heads: int | None
    order: AttentionOrder
    noise_schedule: ScheduleName


# by widths, residual blocks a level and classes
_RELEASED = {
    ((192, 384, 576, 768), 3, 1000): Released("64x64_diffusion.pt", None, "new", "squaredcos_cap_v2"),
    ((256, 256, 512, 768, 1024), 2, 1000): Released("128x128_diffusion.pt", 4, "legacy", "linear"),
}

# Layers of a residual block, of an attention and of a module with a single layer: diffusers' name to ADM's.
_LAYERS = {
    "": "",
    ".norm1": ".in_layers.0",
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".norm2": ".out_layers.0",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
    ".group_norm": ".norm",
    ".to_q": ".qkv",
    ".to_k": ".qkv",
    ".to_v": ".qkv",
    ".to_out.0": ".proj_out",
}


def unet_from_adm(
    state: Mapping[str, Tensor],
    num_head_channels: int | None = None,
    source: str = "the state dict",
    *,
    num_heads: int | None = None,
    order: AttentionOrder | None = None,
) -> UNet2DModel:
    """Return the diffusers U-Net that computes the function of guided-diffusion's `UNetModel` with `state`.

    Names and shapes determine the widths, the residual blocks a level and the levels with attention. They
    also determine the time embedding (scale-shift or additive) and the resampling (residual or
    convolutional). Noise steps are 0 .. T - 1. Weights become float32 and stay on their device; meta tensors
    give a network without weights.

    A network whose first multiplier is not 1 (ADM-512: 0.5) embeds time in a width that diffusers cannot
    configure. Its time embedding is replaced after construction, and its config alone does not rebuild it.
    The same holds for a number of heads that is equal at all widths.

    Args:
        state: parameters by guided-diffusion's names.
        num_head_channels: channels of one attention head. None: 64, as in most of OpenAI's released models,
            but for 128x128_diffusion.pt, which is known by its widths and has 4 heads.
        source: the name of `state` in error messages, usually the file.
        num_heads: heads of every attention, in place of `num_head_channels`.
        order: the rows of query, key and value: legacy, (heads, 3, channels), or new, (3, heads, channels).
            None: new for OpenAI's 64x64_diffusion.pt, known by its widths, else legacy.

    Returns:
        The network in evaluation mode. `config.sample_size` is the side in pixels at which OpenAI trained
        these multipliers, or None for other multipliers.

    Raises:
        DiffLensError: `state` is no guided-diffusion U-Net that diffusers can express, or
            `num_head_channels` or `num_heads` does not divide the width of its attention.
    """
    if any(name.endswith(".qkv.weight") and weight.dim() == 4 for name, weight in state.items()):
        raise DiffLensError(
            f"{source} has convolutions of four dimensions as attention, as files of consistency_models and "
            "EDM: their noise process is x_0 + sigma noise. Name a folder in diffusers format, as "
            "openai/diffusers-cd_bedroom256_l2 is"
        )
    config = _config(state, 64 if num_head_channels is None else num_head_channels, num_heads, source)
    # The meta device allocates nothing: only the weights of `state` take memory.
    with torch.device("meta"):
        try:
            unet = UNet2DModel(**config)
        except ValueError as error:
            raise DiffLensError(f"{source} is not a guided-diffusion U-Net: {error}") from error
        model_channels = state["time_embed.0.weight"].shape[1]
        if model_channels != config["block_out_channels"][0]:
            unet.time_proj = Timesteps(model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
            unet.time_embedding = TimestepEmbedding(model_channels, config["time_embedding_dim"])
    released = known_release(unet) if num_head_channels in (None, 64) else None
    if released is not None:
        order = order or released.order
        if num_head_channels is None:
            num_heads = num_heads or released.num_heads
    if num_heads is not None:
        for module in unet.modules():
            if isinstance(module, Attention):
                module.heads = module.sliceable_head_dim = num_heads
                module.scale = (module.inner_dim / num_heads) ** -0.5
        unet.register_to_config(num_attention_heads=num_heads)
    converted = _convert(state, unet, order or "legacy", source)
    unet.load_state_dict(converted, strict=True, assign=True)
    return unet.eval()


def known_release(unet: UNet2DModel) -> Released | None:
    """Return the model of OpenAI that has these widths and classes, if its flags are not the usual ones."""
    config = unet.config
    key = tuple(config.block_out_channels), config.layers_per_block, config.num_class_embeds
    return _RELEASED.get(key)


def _config(
    state: Mapping[str, Tensor], num_head_channels: int, num_heads: int | None, source: str
) -> dict[str, Any]:
    """Return the configuration of the `UNet2DModel` whose parameters have the shapes of `state`.

    Raises:
        DiffLensError: there is no such configuration.
    """

    def size(name: str, dim: int) -> int:
        if name not in state:
            raise _not_adm(source, missing=[name])
        if state[name].dim() <= dim or not state[name].shape[dim]:
            raise _not_adm(source, misshapen=[_with_shape(name, state)])
        return state[name].shape[dim]

    def numbers(pattern: str) -> set[int]:
        return {int(match[1]) for name in state if (match := re.match(pattern, name))}

    in_channels, model_channels = size("input_blocks.0.0.weight", 1), size("time_embed.0.weight", 1)
    # A decoder level has one residual block more than an encoder level. Its last block is the first with an
    # upsampler, that is with a layer other than an attention behind the residual block.
    blocks = len(numbers(r"input_blocks\.(\d+)\."))
    upsampled = numbers(r"output_blocks\.(\d+)\.[12]\.(?:in_layers|emb_layers|out_layers|conv)\.")
    layers = min([*upsampled, blocks - 1])
    starts = [first + 1 for first in range(0, blocks, layers + 1)]
    channels = [size(f"input_blocks.{start}.0.out_layers.3.weight", 0) for start in starts]
    attention = [bool(numbers(rf"input_blocks\.({start})\.1\.")) for start in starts]
    scale_shift = size("input_blocks.1.0.emb_layers.1.weight", 0) == 2 * channels[0]
    residual = bool(numbers(rf"input_blocks\.({layers + 1})\.0\.in_layers\."))

    attended = {width for width, attends in zip(channels, attention, strict=True) if attends} | {channels[-1]}
    for width in sorted(attended):
        if num_heads is not None:
            if num_heads < 1 or width % num_heads:
                raise DiffLensError(
                    f"num_heads {num_heads} does not divide the attention width {width} of {source}: give "
                    "the value the model was trained with"
                )
        elif num_head_channels < 1 or width % num_head_channels:
            raise DiffLensError(
                f"num_head_channels {num_head_channels} does not divide the attention width {width} of "
                f"{source}: give the value the model was trained with (64 for OpenAI's released models)"
            )
    resampling, down, up = (
        ("resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if residual
        else ("conv", "DownBlock2D", "UpBlock2D")
    )
    return {
        "sample_size": _IMAGE_SIDES.get(tuple(width / model_channels for width in channels)),
        "in_channels": in_channels,
        "out_channels": size("out.2.weight", 0),
        "time_embedding_dim": size("time_embed.0.weight", 0),
        "num_class_embeds": size("label_emb.weight", 0) if "label_emb.weight" in state else None,
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if attends else down for attends in attention),
        "up_block_types": tuple("AttnUpBlock2D" if attends else up for attends in reversed(attention)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        # a fixed number of heads is set after construction
        "attention_head_dim": num_head_channels if num_heads is None else gcd(*attended),
        # with scale_shift, diffusers omits the norm of the middle attention unless this is set
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        # the remaining values are diffusers' defaults, repeated because ADM depends on them
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }


def _convert(
    state: Mapping[str, Tensor], unet: UNet2DModel, order: AttentionOrder, source: str
) -> dict[str, Tensor]:
    """Return `state` in float32 under the names of `unet`.

    Raises:
        DiffLensError: a key is missing, left over or of another shape.
    """
    modules = _modules(
        unet.config.layers_per_block, ["Attn" in block_type for block_type in unet.config.down_block_types]
    )
    names = {
        module + layer: adm_module + adm_layer
        for module, adm_module in modules.items()
        for layer, adm_layer in _LAYERS.items()
    }
    converted: dict[str, Tensor] = {}
    missing, misshapen, unexpected = [], [], set(state)
    for key, parameter in unet.state_dict().items():
        module, _, leaf = key.rpartition(".")
        name = f"{names[module]}.{leaf}"
        if name not in state:
            missing.append(name)
            continue
        unexpected.discard(name)
        tensor = state[name].float()
        if ".attentions." in key and tensor.dim() == 3:
            tensor = tensor.squeeze(-1)  # a 1x1 convolution over positions is a linear layer
        if module.endswith(("to_q", "to_k", "to_v")) and tensor.shape[:1] == (3 * len(parameter),):
            part = "qkv".index(module[-1])
            if order == "new":
                tensor = tensor.chunk(3)[part]
            else:
                width = len(parameter) // unet.get_submodule(module.rpartition(".")[0]).heads
                tensor = tensor.reshape(-1, 3, width, *tensor.shape[1:])[:, part].flatten(0, 1)
        if tensor.shape == parameter.shape:
            converted[key] = tensor
        else:
            misshapen.append(_with_shape(name, state))
    if missing or misshapen or unexpected:
        raise _not_adm(source, missing, misshapen, sorted(unexpected))
    return converted


def _modules(layers: int, attention: Sequence[bool]) -> dict[str, str]:
    """Map diffusers' module names, numbered in each level, to ADM's, numbered through all levels.

    The table also names modules that a level may lack.
    """
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "conv_in": "input_blocks.0.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(len(attention)):
        for layer in range(layers):
            block = f"input_blocks.{level * (layers + 1) + layer + 1}"
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        name, adm_name = f"down_blocks.{level}.downsamplers.0", f"input_blocks.{(level + 1) * (layers + 1)}.0"
        modules |= {name: adm_name, f"{name}.conv": f"{adm_name}.op"}
    for level, attends in enumerate(reversed(attention)):
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"{block}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"{block}.1"
        # the upsampler is in the level's last block, behind the attention if there is one
        name, adm_name = f"up_blocks.{level}.upsamplers.0", f"{block}.{2 if attends else 1}"
        modules |= {name: adm_name, f"{name}.conv": f"{adm_name}.conv"}
    return modules


def _with_shape(name: str, state: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(state[name].shape)}"


def _not_adm(
    source: str, missing: Sequence[str] = (), misshapen: Sequence[str] = (), unexpected: Sequence[str] = ()
) -> DiffLensError:
    lists = {"missing": missing, "of the wrong shape": misshapen, "unexpected": unexpected}
    # query, key and value come from one name, which the message lists once
    problems = [f"{what}: {listing([*dict.fromkeys(names)], 4)}" for what, names in lists.items() if names]
    return DiffLensError(f"{source} is not a guided-diffusion U-Net: {'; '.join(problems)}")
