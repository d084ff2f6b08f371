"""Walks over diffusion transformers: their own forward, shortened to the blocks that are read.

A block is a transformer block, and its map holds the image tokens. The network's lists of blocks are cut
behind the last block that is read; its own forward then runs on what is left. Diffusers registers, for each
class of block, which of its outputs holds the image tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.base import Block, Defaults, DiffusionBackbone, Fed
from difflens.backbones.conditions import Condition
from difflens.backbones.maps import ImageSize, sides_of, size_in_words
from difflens.choices import TapName
from difflens.errors import DiffLensError
from difflens.processes.base import Level, NoiseProcess

_Call = Mapping[str, Any]
"""The arguments of a block's call."""


@dataclass(frozen=True)
class _Family:
    """What one class of transformers needs besides the generic walk.

    Attributes:
        lists: names of the network's lists of blocks, in execution order.
        modulate: shift and scale of the next block's first norm.
        modulate_last: shift and scale of the network's output norm, in place of the next block's.
        packs: side of the square of positions that enters as one token, outside the network.
        time_divisor: its pipeline divides the process' time by this.
        square: its forward takes square images only.
    """

    lists: tuple[str, ...]
    modulate: Callable[[Any, Tensor, _Call], Tensor]
    modulate_last: Callable[[Any, Tensor, _Call, Fed], Tensor]
    packs: int = 1
    time_divisor: float = 1.0
    square: bool = False


def _dit(block: Any, tokens: Tensor, call: _Call) -> Tensor:
    return block.norm1(tokens, call["timestep"], call["class_labels"], hidden_dtype=tokens.dtype)[0]


def _dit_last(network: Any, tokens: Tensor, call: _Call, fed: Fed) -> Tensor:
    embed = network.transformer_blocks[0].norm1.emb
    given = embed(call["timestep"], call["class_labels"], hidden_dtype=tokens.dtype)
    shift, scale = network.proj_out_1(nn.functional.silu(given)).chunk(2, dim=1)
    return network.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None]


def _pixart(block: Any, tokens: Tensor, call: _Call) -> Tensor:
    time = call["timestep"].reshape(tokens.shape[0], 6, -1)
    shift, scale = (block.scale_shift_table[None] + time).chunk(6, dim=1)[:2]
    return block.norm1(tokens) * (1 + scale) + shift


def _pixart_last(network: Any, tokens: Tensor, call: _Call, fed: Fed) -> Tensor:
    _, time, given = fed
    embed, count = network.adaln_single, tokens.shape[0]
    added = given.get("added_cond_kwargs")
    _, embedded = embed(time, added, batch_size=count, hidden_dtype=tokens.dtype)
    shift, scale = (network.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
    return network.norm_out(tokens) * (1 + scale) + shift


def _joint(block: Any, tokens: Tensor, call: _Call) -> Tensor:
    norm = block.norm1 if hasattr(block, "norm1") else block.norm
    return norm(tokens, emb=call["temb"])[0]


def _joint_last(network: Any, tokens: Tensor, call: _Call, fed: Fed) -> Tensor:
    return network.norm_out(tokens, call["temb"])


_BLOCKS = ("transformer_blocks",)
_FAMILIES = {
    "DiTTransformer2DModel": _Family(_BLOCKS, _dit, _dit_last, square=True),
    "FluxTransformer2DModel": _Family(
        (*_BLOCKS, "single_transformer_blocks"), _joint, _joint_last, packs=2, time_divisor=1000
    ),
    "PixArtTransformer2DModel": _Family(_BLOCKS, _pixart, _pixart_last),
    "SD3Transformer2DModel": _Family(_BLOCKS, _joint, _joint_last),
}

WALKED = tuple(_FAMILIES)
"""Classes of transformers whose blocks diffusers registers and whose conditions difflens can give."""


@dataclass(eq=False)
class _Collector:
    """The hook that keeps the image tokens of a block's output, and the arguments of its call.

    It is an object, not a function, so that a copy of the backbone has hooks that collect for the copy.
    """

    backbone: "TransformerBackbone"
    index: int
    place: int
    """Where the image tokens stand among a block's outputs."""

    def __call__(self, module: nn.Module, given: Any, call: Mapping[str, Any], output: Any) -> None:
        seen = self.backbone._seen
        if seen is not None and self.index in seen:
            seen[self.index] = (output[self.place] if isinstance(output, tuple) else output, call)


class TransformerBackbone(DiffusionBackbone):
    """A frozen diffusion transformer of diffusers with its noise process.

    Args:
        network: a transformer of one of the classes `WALKED`; it is frozen and stays in evaluation mode,
            since label dropout is random otherwise.
        process: the forward process of its training.
        spec: the user's name of the backbone.
        image_size: side of the images, in pixels; None: that of the network's configuration.
        defaults: the places that probes read by default; None: the paper's, at the same relative depth.
        autoencoder: of a network that reads latents.
        condition: further arguments of the network.
        tap: how a map is read: raw, the tokens themselves; norm, after a LayerNorm without parameters; or
            adaln, after the norm, shift and scale with which the next block begins. The last block's tokens
            are modulated as at the network's output.

    Raises:
        DiffLensError: the class is not known, or the autoencoder does not fit.
    """

    def __init__(
        self,
        network: Any,
        process: NoiseProcess,
        spec: str = "transformer",
        image_size: int | None = None,
        defaults: Defaults | None = None,
        autoencoder: Autoencoder | None = None,
        condition: Condition | None = None,
        tap: TapName = "raw",
    ):
        name = type(network).__name__
        if name not in _FAMILIES:
            raise DiffLensError(
                f"{name} is not a transformer that difflens can walk; known are {', '.join(WALKED)}"
            )
        packs = _FAMILIES[name].packs
        side = (
            getattr(network.config, "sample_size", None) or 128
        )  # Flux has no size of its own: 1,024 pixels
        super().__init__(
            process,
            spec,
            int(network.config.in_channels) // packs**2,
            int(side),
            image_size,
            autoencoder,
            condition,
        )
        self.family, self.tap = _FAMILIES[name], tap
        self.transformer = network.requires_grad_(False).eval()
        self._patch = packs * int(getattr(network.config, "patch_size", 1))
        self._walked = [block for name in self.family.lists for block in getattr(network, name)]
        width, stride = int(network.inner_dim), self.input_stride * self._patch
        self.blocks = tuple(Block(k, "encoder", width, stride) for k in range(1, len(self._walked) + 1))
        self._cuts: dict[int, dict[str, nn.Module]] = {}
        self._seen: dict[int, tuple[Tensor, Mapping[str, Any]] | None] | None = None
        for index, module in enumerate(self._walked, start=1):
            place = TransformerBlockRegistry.get(type(module)).return_hidden_states_index
            module.register_forward_hook(_Collector(self, index, place), with_kwargs=True)
        self.check_size(self.image_size)
        self.defaults = defaults or self._paper_defaults()

    @property
    def network(self) -> Any:
        return self.transformer

    @property
    def out_channels(self) -> int:
        config = self.network.config
        return int(config.out_channels or config.in_channels) // self.family.packs**2

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
        if feedback:
            raise DiffLensError(f"{self.spec} has no decoder, so there is nothing to feed back")
        grid = [side // self._patch for side in x_t.shape[-2:]]

        def walk(fed: Fed) -> dict[int, Tensor]:
            seen: dict[int, Any] = dict.fromkeys(wanted)
            self._seen = seen
            try:
                self._forward(*fed)
            finally:
                self._seen = None
            maps = {}
            for index in wanted:
                output, call = seen[index]
                tokens = self._tapped(index, output, call, fed)
                maps[index] = tokens.transpose(1, 2).unflatten(2, grid)
            return maps

        with self._cut_behind(wanted[-1]):
            return self.run(compiled, f"the walk to block {wanted[-1]}", wanted, walk, self.fed(x_t, t))

    def fingerprint(self) -> str:
        # the authors' DiT and diffusers' have the same weights and other frequencies of the time embedding
        times = [
            part.downscale_freq_shift for part in self.transformer.modules() if isinstance(part, Timesteps)
        ]
        return sha256(f"{super().fingerprint()} {self.tap} {times}".encode()).hexdigest()

    def check_size(self, size: ImageSize) -> None:
        super().check_size(size)
        height, width = sides_of(size)
        own = int(getattr(self.transformer.config, "sample_size", None) or 0) * self.input_stride
        of_file = getattr(getattr(self.transformer, "pos_embed", None), "of_file", False)
        if of_file and (height, width) != (own, own):
            raise DiffLensError(
                f"{self.spec} has a table of positions for images of {own} pixels, and takes no other size"
            )
        if self.family.square and height != width:
            raise DiffLensError(f"{size_in_words(size)}: {self.spec} takes square images only")
        most = int(getattr(self.transformer.config, "pos_embed_max_size", None) or 0)
        largest = most * self._patch * self.input_stride
        if most and max(height, width) > largest:
            raise DiffLensError(
                f"{self.spec} has positions for images of {largest} pixels at most, not {max(height, width)}"
            )

    def facts(self) -> dict[str, str]:
        return {**super().facts(), "Tokens read": self.tap}

    def modules_of(self, block: int) -> list[nn.Module]:
        modules = self._walked[self.block(block).index - 1 :][:2]
        if self.tap != "adaln" or len(modules) == 1:
            return modules[:1]
        following: Any = modules[1]
        return [modules[0], following.norm1 if hasattr(following, "norm1") else following.norm]

    def _tapped(self, index: int, tokens: Tensor, call: Mapping[str, Any], fed: Fed) -> Tensor:
        """Return the tokens of a block, (B, N, D), as `tap` says."""
        if self.tap == "raw":
            return tokens
        if self.tap == "norm":
            return nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        if index < len(self._walked):
            return self.family.modulate(self._walked[index], tokens, call)
        return self.family.modulate_last(self.transformer, tokens, call, fed)

    @contextmanager
    def _cut_behind(self, last: int) -> Iterator[None]:
        """Let the network end with block `last` inside the context."""
        network = self.transformer
        if last not in self._cuts:
            cuts: dict[str, nn.Module] = {}
            before = 0
            for name in self.family.lists:
                whole = getattr(network, name)
                cuts[name] = nn.ModuleList(whole[: max(0, last - before)])
                before += len(whole)
            self._cuts[last] = cuts
        whole = {name: network._modules[name] for name in self.family.lists}
        network._modules.update(self._cuts[last])
        try:
            yield
        finally:
            network._modules.update(whole)

    def _forward(self, sample: Tensor, time: Tensor, given: Mapping[str, Any]) -> Tensor:
        packs = self.family.packs
        if packs == 1:
            return self.transformer(sample, timestep=time, return_dict=False, **given)[0]
        # Flux: squares of positions are tokens, and positions are given
        tokens = nn.functional.pixel_unshuffle(sample, packs)
        height, width = tokens.shape[-2:]
        rows, columns = torch.arange(height), torch.arange(width)
        ids = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, columns)
        text = torch.zeros(given["encoder_hidden_states"].shape[1], 3)
        output = self.transformer(
            tokens.flatten(2).transpose(1, 2),
            timestep=time / self.family.time_divisor,
            img_ids=ids.to(sample.device, sample.dtype),
            txt_ids=text.to(sample.device, sample.dtype),
            return_dict=False,
            **given,
        )[0]
        return nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (height, width)), packs)

    def _paper_defaults(self) -> Defaults:
        """Return the paper's places on ADM-256, blocks 19, 24 and 30 of 37, at the same relative depth."""
        middle, best, late = (ceil(len(self.blocks) * block / 37) for block in (19, 24, 30))
        at = self.process.at
        return Defaults(
            block=best,
            noise_step=at(0.15),
            fusion_blocks=tuple(sorted({middle, best, late})),
            fusion_noise_steps=tuple(sorted({*map(at, (0.09, 0.15, 0.3))})),
        )
