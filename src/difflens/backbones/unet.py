"""Any diffusers `UNet2DModel`, walked block by block.

The blocks are the network's own submodules in execution order. The walk therefore computes the same function
as the network's forward pass, without a second implementation:

- encoder: the input convolution; each residual block with its attention; each downsampler;
- middle: one block;
- decoder: each residual block with its attention; an upsampler belongs to the block before it.

The output of an encoder block is stored as a skip; a decoder block takes the last skip stored. This pairing
is the mirror of the paper (decoder block b reads encoder block N + 1 - b of N).
"""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_of

from difflens.backbones.base import Block, Defaults, DiffusionBackbone, Respond, Role, digest_of
from difflens.backbones.compiled import CompiledGraphs
from difflens.errors import DiffLensError
from difflens.noise import NoiseSchedule

# On a large GPU, a network with fewer parameters spends its time on launching kernels.
_LAUNCH_BOUND = 50_000_000


@dataclass
class _State:
    """The state of the walk; NCSN++ networks also carry the image down and an output image up."""

    hidden: Tensor
    embedding: Tensor
    image: Tensor
    output: Tensor | None = None
    skips: list[Tensor] = field(default_factory=list)


class _Unit:
    """The modules of one block."""

    def __init__(self, role: Role, modules: Sequence[nn.Module], scale: float = 1.0):
        self.role: Role = role
        self.modules = list(modules)
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
            state.hidden = _apply(module, state.hidden, state.embedding)


class _SkipDown(_Unit):
    """The downsampler of an NCSN++ level, which also downsamples the image and adds it."""

    def __init__(self, level: Any):
        super().__init__("encoder", [level.resnet_down], scale=0.5)
        self.level = level

    def __call__(self, state: _State) -> None:
        super().__call__(state)
        for downsampler in self.level.downsamplers:
            state.image = downsampler(state.image)
        state.hidden = self.level.skip_conv(state.image) + state.hidden


class _SkipUp(_Unit):
    """The last block of an NCSN++ decoder level, which also upsamples the output image."""

    def __init__(self, modules: Sequence[nn.Module], level: Any):
        super().__init__("decoder", modules, scale=1.0 if level.resnet_up is None else 2.0)
        self.level = level

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
    """A frozen `UNet2DModel` with its noise schedule.

    Args:
        unet: an unconditional network; it is frozen and set to evaluation mode.
        schedule: the forward process of its training.
        spec: the user's name of the backbone.
        image_size: side of the images, in pixels; None: that of the network's configuration, else 256.
        defaults: the places that probes read by default; None: the paper's, at the same relative depth.

    Attributes:
        cuda_graphs: record compiled graphs as CUDA graphs too; by default True for small networks.

    Raises:
        DiffLensError: the network is class-conditional, or has blocks that the walk does not support.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        schedule: NoiseSchedule,
        spec: str = "unet",
        image_size: int | None = None,
        defaults: Defaults | None = None,
    ):
        super().__init__()
        if unet.class_embedding is not None:
            raise DiffLensError(f"{spec} is class-conditional; difflens reads unconditional networks")
        self.unet = unet.requires_grad_(False).eval()
        self.schedule = schedule
        self.spec = spec
        self.prediction_type = str(schedule.config.get("prediction_type", "epsilon"))
        self.in_channels = int(unet.config.in_channels)
        size = image_size or unet.config.sample_size or 256
        self.image_size = int(size if isinstance(size, int) else size[0])
        self._units = list(_units(unet))
        self.blocks = _describe(self._units)
        self.cuda_graphs = sum(parameter.numel() for parameter in self.parameters()) < _LAUNCH_BOUND
        self._graphs: CompiledGraphs | None = None
        self.check_side(self.image_size)
        self.defaults = defaults or self._paper_defaults()

    @property
    def generates(self) -> bool:
        images = (self.in_channels, 2 * self.in_channels)
        return super().generates and self.unet.config.out_channels in images

    def features(
        self,
        x_t: Tensor,
        t: int | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        wanted = self.check_blocks(blocks)
        feedback = dict(feedback or {})
        self.check_feedback(feedback)

        def walk(x_t: Tensor, steps: Tensor, feedback: dict[int, Tensor]) -> dict[int, Tensor]:
            return self._walk(self._start(x_t, steps), range(1, wanted[-1] + 1), wanted, feedback)

        name = f"the walk to block {wanted[-1]}"
        key = (wanted, tuple(feedback))
        return self._run(compiled, name, key, walk, x_t, self._steps(x_t, t), feedback)

    def features_with_feedback(
        self,
        x_t: Tensor,
        t: int | Tensor,
        blocks: Iterable[int],
        collect: Iterable[int],
        respond: Respond,
        *,
        compiled: bool = False,
        checkpoint: bool = False,
    ) -> dict[int, Tensor]:
        wanted, collected = self.check_blocks(blocks), self.check_blocks(collect)
        entered = min(block.mirror or 1 for block in map(self.block, collected))

        def first(x_t: Tensor, steps: Tensor) -> tuple[dict[int, Tensor], dict[str, Any]]:
            # both passes compute the same maps up to the first block that feedback can enter
            state = self._start(x_t, steps)
            maps = self._walk(state, range(1, entered), {*wanted, *collected}, {})
            shared = {**vars(state), "skips": list(state.skips)}
            return maps | self._walk(state, range(entered, collected[-1] + 1), collected, {}), shared

        def second(shared: dict[str, Any], feedback: dict[int, Tensor]) -> dict[int, Tensor]:
            state = _State(**{**shared, "skips": list(shared["skips"])})
            later = [index for index in wanted if index >= entered]
            return self._walk(state, range(entered, wanted[-1] + 1), later, feedback, checkpoint)

        steps = self._steps(x_t, t)
        with torch.no_grad():
            maps, shared = self._run(compiled, "the first pass", (1, wanted, collected), first, x_t, steps)
        feedback = respond(maps)
        self.check_feedback(feedback)
        key = (2, wanted, collected, tuple(feedback), checkpoint)
        maps |= self._run(compiled, "the second pass", key, second, shared, feedback)
        return {index: maps[index] for index in wanted}

    def denoise(self, x_t: Tensor, t: int | Tensor, *, compiled: bool = False) -> Tensor:
        def whole(x_t: Tensor, steps: Tensor) -> Tensor:
            return self.unet(x_t, steps).sample

        return self._run(compiled, "the whole network", "denoise", whole, x_t, self._steps(x_t, t))

    def fingerprint(self) -> str:
        architecture = {key: value for key, value in self.unet.config.items() if not key.startswith("_")}
        described = json.dumps(architecture, sort_keys=True, default=str).encode()
        return digest_of(self.unet, described, self.schedule.alphas_cumprod.numpy().tobytes())

    def modules_of(self, block: int) -> list[nn.Module]:
        return self._units[self.block(block).index - 1].modules

    def train(self, mode: bool = True) -> "UNetBackbone":
        """Stay in evaluation mode: a frozen network has no dropout while the head is trained."""
        return super().train(False)

    def _run(
        self, compiled: bool, name: str, key: Hashable, function: Callable[..., Any], *inputs: Any
    ) -> Any:
        """Return `function(*inputs)`, computed directly, or compiled with all maps in channels-last order."""
        if not compiled:
            return function(*inputs)
        if self._graphs is None:
            self._graphs = CompiledGraphs(self.cuda_graphs)
            self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = next(self.parameters()).dtype
        return self._graphs(name, (key, dtype), function, *inputs)

    def _start(self, x_t: Tensor, steps: Tensor) -> _State:
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(steps).to(x_t.dtype))
        image = 2 * x_t - 1 if unet.config.center_input_sample else x_t
        return _State(image, embedding, image)

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

    @staticmethod
    def _steps(x_t: Tensor, t: int | Tensor) -> Tensor:
        return torch.as_tensor(t, device=x_t.device, dtype=torch.long).expand(len(x_t))

    def _paper_defaults(self) -> Defaults:
        """Return the places that the paper reads on ADM-256, at the same relative depth of this network."""
        decoder = [block.index for block in self.of_role("decoder")]
        middle = [block.index for block in self.of_role("middle")]

        def at(depth: int) -> int:
            """Return the block at the relative depth of the paper's decoder block `depth` of 18."""
            return decoder[ceil(len(decoder) * depth / 18) - 1]

        steps = self.num_noise_steps
        per_level = len(decoder) // len(self.unet.up_blocks)
        return Defaults(
            block=at(5),
            noise_step=int(0.15 * steps),
            fusion_blocks=tuple(sorted({*middle, at(5), at(11)})),
            fusion_noise_steps=tuple(sorted({int(share * steps) for share in (0.09, 0.15, 0.3)})),
            feedback_blocks=tuple(decoder[1::per_level] if per_level > 1 else decoder),
        )


def _checkpointed(unit: _Unit, state: _State) -> None:
    """Run a block on `state` and store only its inputs for the gradient (Chen et al., 2016)."""

    def run(*entering: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden, embedding, image, output, skips = entering
        inside = _State(hidden, embedding, image, output, list(skips))
        unit(inside)
        return inside.hidden, inside.image, inside.output

    skips = [state.skips.pop()] if unit.role == "decoder" else []
    state.hidden, state.image, state.output = checkpoint_of(
        run, state.hidden, state.embedding, state.image, state.output, skips, use_reentrant=False
    )


def _apply(module: nn.Module, hidden: Tensor, embedding: Tensor) -> Tensor:
    return module(hidden, embedding) if isinstance(module, ResnetBlock2D) else module(hidden)


def _units(unet: UNet2DModel) -> Iterator[_Unit]:
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
    if not hasattr(level, "resnets"):
        raise DiffLensError(f"{type(level).__name__} is not a block that difflens can walk")
    layers: list[list[nn.Module]] = [[resnet] for resnet in level.resnets]
    # AttnSkipUpBlock2D has one attention, after its last residual block; all others have one for each block
    attentions = list(getattr(level, "attentions", []))
    for layer, attention in zip(layers[len(layers) - len(attentions) :], attentions, strict=True):
        layer.append(attention)
    return layers


def _describe(units: Sequence[_Unit]) -> tuple[Block, ...]:
    mirrors: dict[int, int] = {}
    stored: list[int] = []
    for index, unit in enumerate(units, start=1):
        if unit.role == "encoder":
            stored.append(index)
        elif unit.role == "decoder":
            partner = stored.pop()
            mirrors |= {index: partner, partner: index}
    blocks = []
    stride = 1.0
    for index, unit in enumerate(units, start=1):
        stride /= unit.scale
        blocks.append(Block(index, unit.role, unit.channels, int(stride), mirrors.get(index)))
    return tuple(blocks)
