"""Checkpoints in the authors' layout of DiT, SiT and REPA, converted to diffusers.

DiT (Peebles and Xie, 2023), SiT (Ma et al., 2024) and REPA (Yu et al., 2025) share one network and one naming
scheme. The conversion is exact: `DiTTransformer2DModel` computes the authors' function. A state dict
determines the network except for the width of an attention head. The conversion is one table of modules and
one of the layers of a block. Only the fused rows of query, key and value are cut apart.

Diffusers differs from the authors in four places, which the conversion sets right:

- the time frequencies, which the authors space by half the width and diffusers by half minus one;
- the epsilon of the norm before the feed-forward layers, which is 1e-6;
- the embedding of time and class, of which the authors have one and diffusers has one a block;
- the position table, which diffusers computes and the file holds.
"""

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor

from difflens.errors import DiffLensError, listing

# Modules outside the blocks: diffusers' name to the authors'.
_EMBEDDING = "transformer_blocks.0.norm1.emb"
_MODULES = {
    "pos_embed.proj": "x_embedder.proj",
    f"{_EMBEDDING}.timestep_embedder.linear_1": "t_embedder.mlp.0",
    f"{_EMBEDDING}.timestep_embedder.linear_2": "t_embedder.mlp.2",
    f"{_EMBEDDING}.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}

# Layers of a block: diffusers' name to the authors'.
_LAYERS = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_q": "attn.qkv",
    "attn1.to_k": "attn.qkv",
    "attn1.to_v": "attn.qkv",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}

# How names in this layout begin. Variants of the network share them; the conversion refuses those.
_MARKS = ("x_embedder.proj.", "t_embedder.mlp.", "blocks.0.adaLN_modulation.1.", "final_layer.linear.")


def is_dit(state: Mapping[str, Tensor]) -> bool:
    """Return whether `state` has the authors' names of a DiT, SiT or REPA network.

    Shapes and further names are not looked at: `transformer_from_dit` checks them.
    """
    return all(any(name.startswith(mark) for name in state) for mark in _MARKS)


def has_projectors(state: Mapping[str, Tensor]) -> bool:
    """Return whether `state` holds REPA's projectors, which align a block with another encoder in training.

    The denoiser does not use them, and the conversion leaves them out.
    """
    return any(map(_of_projector, state))


def transformer_from_dit(
    state: Mapping[str, Tensor], num_head_channels: int | None = None, source: str = "the state dict"
) -> DiTTransformer2DModel:
    """Return the diffusers network that computes the function of the authors' `DiT` or `SiT` with `state`.

    Names and shapes determine the width, the depth, the patch and the number of classes. They also determine
    the channels of the output, C or 2 C for an input of C. Weights become float32 and stay on their device;
    meta tensors give a network without weights.

    The network takes latents (images, C, side, side), times (images,) and class labels (images,). Time passes
    straight to its embedding: DiT was trained with steps 0 .. 999, SiT and REPA with numbers in [0, 1]. The
    label `config.num_embeds_ada_norm` is the null class, the last row of the table. All blocks share one
    embedding of time and class. Labels are never dropped, even in training mode.

    The config alone does not rebuild the network: it holds neither the time frequencies nor the positions.
    For latents of another side diffusers stretches the formula's positions, and the table is not read.

    Args:
        state: parameters by the authors' names. REPA's projectors are left out. The table of positions,
            (1, tokens, width), may be absent; it is then computed by the authors' formula.
        num_head_channels: channels of one attention head. None means 72 for a width of 1152 (XL), else 64.
        source: the name of `state` in error messages, usually the file.

    Returns:
        The network in evaluation mode. `config.sample_size` is the side of its latents, by the table of
        positions. Without a table it is 32, which stands for 256 pixels. Where the output has 2 C channels,
        the second half is DiT's variance; SiT discards it.

    Raises:
        DiffLensError: a key of `state` is missing, left over or of another shape, or `num_head_channels` does
            not divide the width. Norms of query and key and other variants of the network are left over.
    """
    state = {name: tensor.detach() for name, tensor in state.items() if not _of_projector(name)}
    config = _config(state, num_head_channels, source)
    # The meta device allocates nothing: only the weights of `state` take memory.
    with torch.device("meta"):
        try:
            transformer = DiTTransformer2DModel(**config)
        except ValueError as error:
            raise DiffLensError(f"{source} is not a DiT, SiT or REPA network: {error}") from error
    first, *rest = transformer.transformer_blocks
    for block in rest:
        block.norm1.emb = None  # shared below: until then there is one name for each parameter
    transformer.load_state_dict(_convert(state, transformer, source), strict=True, assign=True)

    embedding = first.norm1.emb
    embedding.time_proj.downscale_freq_shift = 0
    embedding.class_embedder.dropout_prob = 0.0
    for block in rest:
        block.norm1.emb = embedding
    transformer.pos_embed.pos_embed = _positions(state, transformer)
    transformer.pos_embed.of_file = True
    return transformer.eval()


def _config(state: Mapping[str, Tensor], num_head_channels: int | None, source: str) -> dict[str, Any]:
    """Return the configuration of the `DiTTransformer2DModel` whose parameters have the shapes of `state`.

    Raises:
        DiffLensError: there is no such configuration.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in state:
            raise _not_dit(source, missing=[name])
        if state[name].dim() != dims or not state[name].numel():
            raise _not_dit(source, misshapen=[_with_shape(name, state)])
        return tuple(state[name].shape)

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    rows, _ = shape("y_embedder.embedding_table.weight", 2)
    outputs, _ = shape("final_layer.linear.weight", 2)
    if outputs not in (channels * patch**2, 2 * channels * patch**2):
        raise _not_dit(source, misshapen=[_with_shape("final_layer.linear.weight", state)])
    grid = max(32 // patch, 1)
    if "pos_embed" in state:
        ones, tokens, table_width = shape("pos_embed", 3)
        grid = isqrt(tokens)
        if (ones, grid**2, table_width) != (1, tokens, width):
            raise _not_dit(source, misshapen=[_with_shape("pos_embed", state)])

    head = num_head_channels if num_head_channels is not None else 72 if width == 1152 else 64
    if head < 1 or width % head:
        raise DiffLensError(
            f"num_head_channels {head} does not divide the width {width} of {source}: give the value the "
            "model was trained with (72 for the published XL, 64 for S, B and L)"
        )
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "num_layers": max(len(blocks), 1),
        "sample_size": grid * patch,
        "patch_size": patch,
        # diffusers adds the row of the null class
        "num_embeds_ada_norm": rows - 1,
        "norm_eps": 1e-6,
        # the remaining values are diffusers' defaults, repeated because DiT depends on them
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }


def _convert(
    state: Mapping[str, Tensor], transformer: DiTTransformer2DModel, source: str
) -> dict[str, Tensor]:
    """Return `state` in float32 under the names of `transformer`, without the table of positions.

    Raises:
        DiffLensError: a key is missing, left over or of another shape.
    """
    names = dict(_MODULES)
    for block in range(transformer.config.num_layers):
        for layer, authors_layer in _LAYERS.items():
            names[f"transformer_blocks.{block}.{layer}"] = f"blocks.{block}.{authors_layer}"
    converted: dict[str, Tensor] = {}
    missing, misshapen, unexpected = [], [], set(state) - {"pos_embed"}
    for key, parameter in transformer.state_dict().items():
        module, _, leaf = key.rpartition(".")
        name = f"{names[module]}.{leaf}"
        if name not in state:
            missing.append(name)
            continue
        unexpected.discard(name)
        tensor = state[name]
        if module.endswith(("to_q", "to_k", "to_v")) and tensor.shape[:1] == (3 * len(parameter),):
            tensor = tensor.chunk(3)["qkv".index(module[-1])]
        if tensor.shape == parameter.shape:
            converted[key] = tensor.float()
        else:
            misshapen.append(_with_shape(name, state))
    if missing or misshapen or unexpected:
        raise _not_dit(source, missing, misshapen, sorted(unexpected))
    return converted


def _positions(state: Mapping[str, Tensor], transformer: DiTTransformer2DModel) -> Tensor:
    """Return the table of positions, (1, tokens, width): that of `state`, else the authors' formula."""
    if "pos_embed" in state:
        return state["pos_embed"].float()
    grid = transformer.pos_embed.height
    device = state["x_embedder.proj.weight"].device
    table: Tensor = get_2d_sincos_pos_embed(
        transformer.inner_dim, grid, base_size=grid, device=device, output_type="pt"
    )
    return table.float()[None]


def _of_projector(name: str) -> bool:
    return name.startswith("projectors.")


def _with_shape(name: str, state: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(state[name].shape)}"


def _not_dit(
    source: str, missing: Sequence[str] = (), misshapen: Sequence[str] = (), unexpected: Sequence[str] = ()
) -> DiffLensError:
    lists = {"missing": missing, "of the wrong shape": misshapen, "unexpected": unexpected}
    # query, key and value come from one name, which the message lists once
    problems = [f"{what}: {listing([*dict.fromkeys(names)], 4)}" for what, names in lists.items() if names]
    return DiffLensError(f"{source} is not a DiT, SiT or REPA network: {'; '.join(problems)}")
