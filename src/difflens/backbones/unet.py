"""Any diffusers `UNet2DModel`, walked block by block.

The blocks are the network's own submodules in execution order. The walk therefore computes the same function
as the network's forward pass, without a second implementation:

- encoder: the input convolution; each residual block with its attention; each downsampler;
- middle: one block;
- decoder: each residual block with its attention; an upsampler belongs to the block before it.

The output of an encoder block is stored as a skip; a decoder block takes the last skip stored. This pairing
is the mirror of the paper. With N encoder and N decoder blocks, each counted from 1, decoder block b takes
the skip of encoder block N + 1 - b.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_of

from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.base import Block, Defaults, DiffusionBackbone, Fed, Respond, Role
from difflens.backbones.conditions import Condition
from difflens.errors import DiffLensError
from difflens.processes.base import Level, NoiseProcess

# The levels whose blocks are known; others attend or normalise in ways of their own.
_LEVELS = (
    "AttnDownBlock2D",
    "AttnSkipDownBlock2D",
    "AttnSkipUpBlock2D",
    "AttnUpBlock2D",
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DownBlock2D",
    "ResnetDownsampleBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipDownBlock2D",
    "SkipUpBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
)


@dataclass
class _State:
    """The state of the walk; NCSN++ networks also carry the image down and an output image up.

    `context` and `mask` are what cross-attention reads in text-to-image networks.
    """

    hidden: Tensor
    embedding: Tensor
    image: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    output: Tensor | None = None
    skips: list[Tensor] = field(default_factory=list)


class _Unit:
    """The modules of one block."""

    def __init__(self, role: Role, modules: Sequence[nn.Module], scale: float = 1.0):
        self.role: Role = role
        self.modules = list(modules)
        self.beside: list[nn.Module] = []
        """Modules beside the main path, of NCSN++."""
        self.scale = scale
        """The side of the output map divided by the side of the input map."""

    @property
    def channels(self) -> int:
        channels = [getattr(module, "out_channels", None) for module in self.modules]
        return int([count for count in channels if count is not None][-1])

    def __call__(self, state: _State) -> None:
        if self.role == "decoder":
            state.hidden = torch.cat([state.hidden, state.skips.pop()], dim=1)
        for module in self.modules:
            state.hidden = _apply(module, state)


class _SkipDown(_Unit):
    """The downsampler of an NCSN++ level, which also downsamples the image and adds it."""

    def __init__(self, level: Any):
        super().__init__("encoder", [level.resnet_down], scale=0.5)
        self.level, self.beside = level, [*level.downsamplers, level.skip_conv]

    def __call__(self, state: _State) -> None:
        super().__call__(state)
        for downsampler in self.level.downsamplers:
            state.image = downsampler(state.image)
        state.hidden = self.level.skip_conv(state.image) + state.hidden


class _SkipUp(_Unit):
    """The last block of an NCSN++ decoder level, which also upsamples the output image."""

    def __init__(self, modules: Sequence[nn.Module], level: Any):
        super().__init__("decoder", modules, scale=1.0 if level.resnet_up is None else 2.0)
        beside = (level.upsampler, level.skip_norm, level.skip_conv, level.resnet_up)
        self.level, self.beside = level, [module for module in beside if module is not None]

    def __call__(self, state: _State) -> None:
        super().__call__(state)
        level = self.level
        if state.output is not None:
            state.output = level.upsampler(state.output)
        if level.resnet_up is not None:
            added = level.skip_conv(level.act(level.skip_norm(state.hidden)))
            state.output = added if state.output is None else state.output + added
            state.hidden = level.resnet_up(state.hidden, state.embedding)


class UNetBackbone(DiffusionBackbone):
    """A frozen U-Net of diffusers with its noise process.

    Args:
        unet: a `UNet2DModel` or `UNet2DConditionModel`; it is frozen and set to evaluation mode.
        process: the forward process of its training.
        spec: the user's name of the backbone.
        image_size: side of the images, in pixels; None: that of the network's configuration.
        defaults: the places that probes read by default; None: the paper's, at the same relative depth.
        autoencoder: of a network that reads latents.
        condition: further arguments of a conditional network.

    Raises:
        DiffLensError: the network lacks its condition, the autoencoder does not fit, the network has blocks
            that the walk does not support, or neither it nor `image_size` states the side of the images.
    """

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel,
        process: NoiseProcess,
        spec: str = "unet",
        image_size: int | None = None,
        defaults: Defaults | None = None,
        autoencoder: Autoencoder | None = None,
        condition: Condition | None = None,
    ):
        size = unet.config.sample_size or image_size
        if size is None:
            raise DiffLensError(f"{spec} does not state the side of its images: give --image-size")
        super().__init__(
            process,
            spec,
            int(unet.config.in_channels),
            size if isinstance(size, int) else size[0],
            image_size,
            autoencoder,
            condition,
        )
        if condition is None and (isinstance(unet, UNet2DConditionModel) or unet.class_embedding is not None):
            raise DiffLensError(f"{spec} is conditional, and no condition is given")
        self.unet = unet.requires_grad_(False).eval()
        self._units = list(_units(unet))
        self.blocks = _describe(self._units, self.input_stride)
        self.check_size(self.image_size)
        self.defaults = defaults or self._paper_defaults()

    @property
    def network(self) -> nn.Module:
        return self.unet

    def features(
        self,
        x_t: Tensor,
        t: Level | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        wanted = self.check_blocks(blocks)
        feedback = dict(feedback or {})
        self.check_feedback(feedback)

        def walk(fed: Fed, feedback: dict[int, Tensor]) -> dict[int, Tensor]:
            return self._walk(self._start(*fed), range(1, wanted[-1] + 1), wanted, feedback)

        name = f"the walk to block {wanted[-1]}"
        key = (wanted, tuple(feedback))
        return self.run(compiled, name, key, walk, self.fed(x_t, t), feedback)

    def features_with_feedback(
        self,
        x_t: Tensor,
        t: Level | Tensor,
        blocks: Iterable[int],
        collect: Iterable[int],
        respond: Respond,
        *,
        compiled: bool = False,
        checkpoint: bool = False,
    ) -> dict[int, Tensor]:
        wanted, collected = self.check_blocks(blocks), self.check_blocks(collect)
        entered = min(block.mirror or 1 for block in map(self.block, collected))

        def first(fed: Fed) -> tuple[dict[int, Tensor], dict[str, Any]]:
            # both passes compute the same maps up to the first block that feedback can enter
            state = self._start(*fed)
            maps = self._walk(state, range(1, entered), {*wanted, *collected}, {})
            shared = {**vars(state), "skips": list(state.skips)}
            return maps | self._walk(state, range(entered, collected[-1] + 1), collected, {}), shared

        def second(shared: dict[str, Any], feedback: dict[int, Tensor]) -> dict[int, Tensor]:
            state = _State(**{**shared, "skips": list(shared["skips"])})
            later = [index for index in wanted if index >= entered]
            return self._walk(state, range(entered, wanted[-1] + 1), later, feedback, checkpoint)

        fed = self.fed(x_t, t)
        with torch.no_grad():
            maps, shared = self.run(compiled, "the first pass", (1, wanted, collected), first, fed)
        feedback = respond(maps)
        self.check_feedback(feedback)
        key = (2, wanted, collected, tuple(feedback), checkpoint)
        maps |= self.run(compiled, "the second pass", key, second, shared, feedback)
        return {index: maps[index] for index in wanted}

    def modules_of(self, block: int) -> list[nn.Module]:
        unit = self._units[self.block(block).index - 1]
        return [*unit.modules, *unit.beside]

    def _start(self, sample: Tensor, time: Tensor, given: dict[str, Any]) -> _State:
        """Return the state before the first block: the embeddings of time and conditions."""
        unet = self.unet
        image = 2 * sample - 1 if unet.config.center_input_sample else sample
        if isinstance(unet, UNet2DModel):
            embedding = unet.time_embedding(unet.time_proj(time).to(sample.dtype))
            if unet.class_embedding is not None:
                labels = given["class_labels"]
                if unet.config.class_embed_type == "timestep":
                    labels = unet.time_proj(labels).to(sample.dtype)
                embedding = embedding + unet.class_embedding(labels).to(sample.dtype)
            return _State(image, embedding, image)
        context, added = given["encoder_hidden_states"], given.get("added_cond_kwargs")
        embedding = unet.time_embedding(unet.get_time_embed(image, time), given.get("timestep_cond"))
        labels = unet.get_class_embed(image, given.get("class_labels"))
        if labels is not None:
            concatenated = unet.config.class_embeddings_concat
            embedding = torch.cat([embedding, labels], dim=-1) if concatenated else embedding + labels
        further = unet.get_aug_embed(embedding, context, added)
        embedding = embedding if further is None else embedding + further
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        mask = given.get("encoder_attention_mask")
        return _State(image, embedding, image, unet.process_encoder_hidden_states(context, added), mask)

    def _walk(
        self,
        state: _State,
        indices: range,
        wanted: Collection[int],
        feedback: Mapping[int, Tensor],
        checkpoint: bool = False,
    ) -> dict[int, Tensor]:
        """Run the blocks `indices` on `state`, which changes, and return the maps of the `wanted` ones."""
        maps = {}
        for index in indices:
            unit = self._units[index - 1]
            if checkpoint:
                _checkpointed(unit, state)
            else:
                unit(state)
            if index in feedback:  # paper section 3.3: feedback enters before the skip is stored
                state.hidden = state.hidden + feedback[index]
            if unit.role == "encoder":
                state.skips.append(state.hidden)
            if index in wanted:
                maps[index] = state.hidden
        return maps

    def _paper_defaults(self) -> Defaults:
        """Return the places that the paper reads on ADM-256, at the same relative depth of this network."""
        decoder = [block.index for block in self.of_role("decoder")]
        middle = [block.index for block in self.of_role("middle")]

        def at(depth: int) -> int:
            """Return the block at the relative depth of the paper's decoder block `depth` of 18."""
            return decoder[ceil(len(decoder) * depth / 18) - 1]

        at_noise = self.process.at
        per_level = len(decoder) // len(self.unet.up_blocks)
        return Defaults(
            block=at(5),
            noise_step=at_noise(0.15),
            fusion_blocks=tuple(sorted({*middle, at(5), at(11)})),
            fusion_noise_steps=tuple(sorted({*map(at_noise, (0.09, 0.15, 0.3))})),
            feedback_blocks=tuple(decoder[1::per_level] if per_level > 1 else decoder),
        )


def _checkpointed(unit: _Unit, state: _State) -> None:
    """Run a block on `state` and store only its inputs for the gradient (Chen et al., 2016)."""

    def run(*entering: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        hidden, embedding, image, context, mask, output, skips = entering
        inside = _State(hidden, embedding, image, context, mask, output, list(skips))
        unit(inside)
        return inside.hidden, inside.embedding, inside.image, inside.output

    skips = [state.skips.pop()] if unit.role == "decoder" else []
    state.hidden, state.embedding, state.image, state.output = checkpoint_of(
        run,
        state.hidden,
        state.embedding,
        state.image,
        state.context,
        state.mask,
        state.output,
        skips,
        use_reentrant=False,
    )


def _apply(module: nn.Module, state: _State) -> Tensor:
    if isinstance(module, ResnetBlock2D):
        return module(state.hidden, state.embedding)
    if isinstance(module, Transformer2DModel):
        context, mask = state.context, state.mask
        return module(state.hidden, context, encoder_attention_mask=mask, return_dict=False)[0]
    return module(state.hidden)


def _units(unet: UNet2DModel | UNet2DConditionModel) -> Iterator[_Unit]:
    parts = [*unet.down_blocks, *unet.up_blocks, *([] if unet.mid_block is None else [unet.mid_block])]
    unknown = {type(part).__name__ for part in parts} - {*_LEVELS}
    if unknown:
        raise DiffLensError(f"{', '.join(sorted(unknown))} is not a block that difflens can walk")
    yield _Unit("encoder", [unet.conv_in])
    for level in unet.down_blocks:
        yield from (_Unit("encoder", modules) for modules in _layers(level))
        if level.downsamplers is not None:
            if hasattr(level, "skip_conv"):
                yield _SkipDown(level)
            else:
                yield _Unit("encoder", level.downsamplers, scale=0.5)
    if unet.mid_block is not None:
        first, *rest = unet.mid_block.resnets
        modules = [first]
        for attention, resnet in zip(unet.mid_block.attentions, rest, strict=True):
            modules += [resnet] if attention is None else [attention, resnet]
        yield _Unit("middle", modules)
    for level in unet.up_blocks:
        *others, last = _layers(level)
        yield from (_Unit("decoder", modules) for modules in others)
        if hasattr(level, "skip_conv"):
            yield _SkipUp(last, level)
        elif level.upsamplers is not None:
            yield _Unit("decoder", [*last, *level.upsamplers], scale=2.0)
        else:
            yield _Unit("decoder", last)


def _layers(level: Any) -> list[list[nn.Module]]:
    """Return the residual blocks of a level, each with the attention that follows it."""
    layers: list[list[nn.Module]] = [[resnet] for resnet in level.resnets]
    # AttnSkipUpBlock2D has one attention, after its last residual block; all others have one for each block
    attentions = list(getattr(level, "attentions", []))
    for layer, attention in zip(layers[len(layers) - len(attentions) :], attentions, strict=True):
        if not isinstance(attention, Attention | Transformer2DModel):
            raise DiffLensError(f"{type(attention).__name__} is not an attention that difflens can walk")
        layer.append(attention)
    return layers


def _describe(units: Sequence[_Unit], input_stride: int) -> tuple[Block, ...]:
    mirrors: dict[int, int] = {}
    stored: list[int] = []
    for index, unit in enumerate(units, start=1):
        if unit.role == "encoder":
            stored.append(index)
        elif unit.role == "decoder":
            partner = stored.pop()
            mirrors |= {index: partner, partner: index}
    blocks = []
    stride = float(input_stride)
    for index, unit in enumerate(units, start=1):
        stride /= unit.scale
        blocks.append(Block(index, unit.role, unit.channels, int(stride), mirrors.get(index)))
    return tuple(blocks)
