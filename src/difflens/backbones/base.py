"""The contract of a backbone: the interface of every network that features are read from."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Self

import torch
from diffusers.models.embeddings import GaussianFourierProjection
from torch import Tensor, nn

from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.compiled import CompiledGraphs
from difflens.backbones.conditions import Condition
from difflens.backbones.maps import ImageSize, MapShape, sides_of
from difflens.backbones.pretrained import digest_of
from difflens.errors import DiffLensError, counted, listing
from difflens.processes.base import Level, NoiseProcess
from difflens.processes.clean import Clean
from difflens.run.memory import require_memory

Role = Literal["encoder", "middle", "decoder"]

# On a large GPU, a network with fewer parameters spends its time on launching kernels.
_LAUNCH_BOUND = 50_000_000

Respond = Callable[[dict[int, Tensor]], dict[int, Tensor]]
"""A function from the maps of decoder blocks to the feedback for encoder blocks, both by block index."""


@dataclass(frozen=True)
class Block:
    """One block of a backbone, whose output is a feature map.

    Attributes:
        index: position in execution order, from 1.
        role: the part of the network that holds the block.
        channels: channels of the map.
        stride: side of the images divided by the side of the map.
        mirror: for a decoder block, the index of the encoder block whose skip it concatenates; for an encoder
            block, the index of the decoder block that reads its skip; None for the middle and for networks
            without a decoder.
    """

    index: int
    role: Role
    channels: int
    stride: int
    mirror: int | None = None


@dataclass(frozen=True)
class Defaults:
    """The places that probes read by default.

    Attributes:
        block, noise_step: the place for heads that read one map.
        fusion_blocks, fusion_noise_steps: the blocks and noise levels for DifFormer.
        feedback_blocks: the decoder blocks whose maps DifFeed sends back to their mirrors.
        token_side: the attention head and DifFormer pool larger maps to this side; it is 16 in the paper.
    """

    block: int
    noise_step: Level
    fusion_blocks: tuple[int, ...]
    fusion_noise_steps: tuple[Level, ...]
    feedback_blocks: tuple[int, ...] = ()
    token_side: int = 16


class Backbone(nn.Module, ABC):
    """A frozen network that is read block by block.

    Attributes:
        spec: the argument of `load_backbone`; a saved model finds its backbone again by it.
        blocks: all blocks in execution order.
        in_channels: channels of the images.
        image_size: side of the square training images, in pixels.
        defaults: the places that probes read by default.
        process: how images are noised, and what the network is fed and told.
    """

    spec: str
    blocks: tuple[Block, ...]
    in_channels: int
    image_size: int
    defaults: Defaults
    process: NoiseProcess

    @property
    def input_stride(self) -> int:
        """Side of the images divided by the side of x_t: 1, or the autoencoder's for latents."""
        return 1

    @property
    def latent_shape(self) -> MapShape | None:
        """(C, H, W) of the latents of an image; None for a network that reads pixels."""
        return None

    def encode(self, images: Tensor) -> Tensor:
        """Return x_0, what is noised: the images in [-1, 1] themselves, or their latents.

        Args:
            images: (B, C, H, W) in [-1, 1].

        Raises:
            DiffLensError: a latent is not finite.
        """
        return images

    def add_noise(self, x_0: Tensor, t: Level | Tensor, noise: Tensor) -> Tensor:
        """Return x_t, (B, C, H, W): the forward process on x_0 with standard normal `noise`.

        Args:
            x_0: images in [-1, 1] or latents, as from `encode`, (B, C, H, W).
            t: the noise level, one for all images or (B,).
            noise: (B, C, H, W).
        """
        return self.process.add_noise(x_0, t, noise)

    @abstractmethod
    def features(
        self,
        x_t: Tensor,
        t: Level | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        """Return the feature maps of `blocks`, (B, channels, H / stride, W / stride) each, by block index.

        H and W are the sides of the images, in pixels. The network stops after the last of these blocks.

        Args:
            x_t: noised images or latents, (B, C, H, W).
            t: the noise level, one for all images or (B,).
            blocks: block indices, in any order.
            feedback: tensors by encoder block. Each is added to the block's output before the output is
                stored as a skip (DifFeed, paper section 3.3).
            compiled: use one compiled graph for these blocks and this shape, where the backbone supports it.
                The first call may take minutes. The maps differ from the uncompiled ones by rounding.

        Raises:
            DiffLensError: a block does not exist, or feedback is for a block that is no encoder block.
        """

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
        """Run two passes over the same x_t and return the maps of the second (DifFeed, paper section 3.3).

        Args:
            x_t, t, blocks: as in `features`.
            collect: decoder blocks whose maps the first pass gives to `respond`, without gradient.
            respond: computes from those maps the feedback for their mirrors.
            compiled: use one compiled graph for each pass, as in `features`.
            checkpoint: store only the inputs of each block in the second pass, and compute the block again
                for its gradient (Chen et al., 2016). This takes less memory and a third more time.

        Returns:
            The maps of `blocks` in the second pass, by block index; shapes as in `features`.

        Raises:
            DiffLensError: the backbone has no decoder, or a block does not exist.
        """
        raise DiffLensError(f"feedback needs a decoder: {self.describe_blocks()}")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hex digest of architecture, schedule and weights; equal digests mean equal features."""

    @abstractmethod
    def modules_of(self, block: int) -> list[nn.Module]:
        """Return the submodules that compute `block`, or lists of their parameters if they are not known."""

    def parameters_of(self, block: int) -> list[nn.Parameter]:
        """Return the parameters that `block` is the first to use, for fine-tuning."""
        used = [
            {id(p): p for module in self.modules_of(index) for p in module.parameters()}
            for index in range(1, self.block(block).index + 1)
        ]
        before = {key for parameters in used[:-1] for key in parameters}
        return [parameter for key, parameter in used[-1].items() if key not in before]

    def facts(self) -> dict[str, str]:
        """Return the noise process, latents and condition in words, by title, for reports."""
        return {}

    @property
    def generates(self) -> bool:
        """True if `difflens.sample` can draw images from the backbone."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point format of the weights; float32 for a backbone without weights."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def convert(self, dtype: torch.dtype) -> None:
        """Convert the weights to `dtype`."""
        self.to(dtype)

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a backbone without weights."""
        tensors = chain(self.parameters(), self.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def block(self, index: int) -> Block:
        """Return the block numbered `index`, from 1.

        Raises:
            DiffLensError: there is no such block; the message lists the blocks.
        """
        if not 1 <= index <= len(self.blocks):
            raise DiffLensError(f"no block {index}: {self.describe_blocks()}")
        return self.blocks[index - 1]

    def of_role(self, role: Role) -> tuple[Block, ...]:
        """Return the blocks of one part of the network, in execution order."""
        return tuple(block for block in self.blocks if block.role == role)

    def describe_blocks(self) -> str:
        """Return, for example, "the backbone has 37 blocks: encoder 1-18, middle 19, decoder 20-37"."""
        parts = []
        for role in ("encoder", "middle", "decoder"):
            indices = [block.index for block in self.of_role(role)]
            if indices:
                span = f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else f"{indices[0]}"
                parts.append(f"{role} {span}")
        return f"the backbone has {counted(len(self.blocks), 'block')}: {', '.join(parts)}"

    def check_blocks(self, blocks: Iterable[int]) -> tuple[int, ...]:
        """Return `blocks` sorted and without repetitions.

        Raises:
            DiffLensError: `blocks` is empty, or one of them does not exist.
        """
        indices = tuple(sorted(set(blocks)))
        if not indices:
            raise DiffLensError(f"blocks is empty: {self.describe_blocks()}")
        for index in indices:
            self.block(index)
        return indices

    def check_noise_steps(self, noise_steps: Iterable[Level]) -> tuple[Level, ...]:
        """Return `noise_steps` sorted and without repetitions; errors as in `NoiseProcess.check`."""
        return self.process.check(noise_steps)

    def check_size(self, size: ImageSize) -> None:
        """Raise a DiffLensError if the backbone does not take images of this size.

        The largest stride of the blocks must divide both sides; a network may ask for more.
        """
        stride = max(block.stride for block in self.blocks)
        for side in sides_of(size):
            if side % stride:
                raise DiffLensError(
                    f"image side {side} is not a multiple of {stride}, the backbone's largest stride"
                )

    def require_memory(
        self, images: int, blocks: Iterable[int] | None = None, side: int | None = None
    ) -> None:
        """Check that the largest map of a batch fits into main memory; a GPU says so itself.

        Args:
            images: the number of images in the batch.
            blocks: the blocks that are read; None: all.
            side: the side of the images, in pixels; None: `image_size`.

        Raises:
            DiffLensError: it does not fit.
        """
        if self.device.type != "cpu":
            return
        side = side or self.image_size
        passed = self.blocks[: None if blocks is None else max(blocks)]
        values = max(block.channels * (side // block.stride) ** 2 for block in passed)
        what = f"a batch of {counted(images, 'image')} of side {side}"
        require_memory(4 * images * values, what, "lower the size of the images or of the batch")

    def check_feedback(self, feedback: Iterable[int]) -> None:
        """Raise a DiffLensError if one of the blocks that `feedback` names is no encoder block."""
        encoder = [block.index for block in self.of_role("encoder")]
        wrong = sorted(set(feedback) - set(encoder))
        if wrong:
            raise DiffLensError(
                f"feedback enters encoder blocks only, not block {listing(wrong)}: {self.describe_blocks()}"
            )


class CleanBackbone(Backbone):
    """A backbone that reads clean images: its only noise step, 0, adds no noise."""

    process = Clean()


Fed = tuple[Tensor, Tensor, dict[str, Any]]
"""What a network is fed: its input, (B, C, H, W); its time, (B,); its conditions by argument."""


class DiffusionBackbone(Backbone):
    """A backbone with a noise process and a denoiser of diffusers, which can also generate images.

    Args:
        process: how images or latents are noised, and what the network is fed and told.
        spec: the user's name of the backbone.
        channels, side: channels and side of the network's input; the side is used without `image_size`.
        image_size: side of the images, in pixels; None: that of the network's input.
        autoencoder: of a network that reads latents; None for pixels.
        condition: conditions that the network is given; None for an unconditional network.

    Attributes:
        input_shape: (C, H, W) of x_t.
        cuda_graphs: record compiled graphs as CUDA graphs too; by default True for small networks.

    Raises:
        DiffLensError: the autoencoder's latents have other channels, or its stride does not divide the side.
    """

    def __init__(
        self,
        process: NoiseProcess,
        spec: str,
        channels: int,
        side: int,
        image_size: int | None = None,
        autoencoder: Autoencoder | None = None,
        condition: Condition | None = None,
    ):
        super().__init__()
        self.process, self.spec = process, spec
        self.autoencoder, self.condition = autoencoder, condition
        check_channels(channels, None, autoencoder, spec)
        stride = self.input_stride
        self.image_size = image_size or side * stride
        if self.image_size % stride:
            raise DiffLensError(
                f"image side {self.image_size} is not a multiple of {stride}, the autoencoder's stride"
            )
        self.in_channels = channels if autoencoder is None else autoencoder.in_channels
        self.input_shape = (channels, self.image_size // stride, self.image_size // stride)
        self.cuda_graphs: bool | None = None
        self._graphs: CompiledGraphs | None = None

    @property
    @abstractmethod
    def network(self) -> Any:
        """The network of diffusers, without autoencoder."""

    @property
    def generates(self) -> bool:
        channels = self.input_shape[0]
        if isinstance(self.process, Clean):
            return False
        return self.out_channels in (channels, 2 * channels) and self.in_channels in (1, 3)

    @property
    def launch_bound(self) -> bool:
        """True for a network so small that a GPU takes longer to launch its kernels than to run them."""
        return sum(parameter.numel() for parameter in self.network.parameters()) < _LAUNCH_BOUND

    @property
    def out_channels(self) -> int:
        """Channels of the output for x_t: as many as x_t has, or twice as many with a learned variance."""
        return int(self.network.config.get("out_channels") or self.input_shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def convert(self, dtype: torch.dtype) -> None:
        """Convert the network's weights to `dtype`; an autoencoder keeps float32.

        The frequencies of a Fourier embedding stay as they are.
        """
        with self._exact_frequencies():
            nn.Module.to(self.network, dtype)  # diffusers' own `to` warns of any dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all tensors, for `.to()` and `.half()`; frequencies stay exact, as in `convert`."""
        with self._exact_frequencies():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @contextmanager
    def _exact_frequencies(self) -> Iterator[None]:
        """Give Fourier embeddings their frequencies back at the end: rounded, they tell another time."""
        embeddings = [part for part in self.network.modules() if isinstance(part, GaussianFourierProjection)]
        frequencies = [part.weight.data for part in embeddings]
        yield
        for part, exact in zip(embeddings, frequencies, strict=True):
            if not exact.is_meta:
                part.weight.data = exact.to(part.weight.device)

    @property
    def input_stride(self) -> int:
        return 1 if self.autoencoder is None else self.autoencoder.stride

    @property
    def latent_shape(self) -> MapShape | None:
        return None if self.autoencoder is None else self.input_shape

    def encode(self, images: Tensor) -> Tensor:
        return images if self.autoencoder is None else self.autoencoder.encode(images)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return images, (B, C, H, W) in about [-1, 1], of noiseless x_0, (B, C, H, W)."""
        return self.process.to_images(x_0) if self.autoencoder is None else self.autoencoder.decode(x_0)

    def facts(self) -> dict[str, str]:
        facts = {"Noise process": self.process.describe()}
        if self.autoencoder is not None:
            channels, side, _ = self.input_shape
            facts["Latents"] = f"{channels} x {side} x {side}, {self.autoencoder.describe()}"
        if self.condition is not None:
            facts["Condition"] = self.condition.name
        return facts

    def fed(self, x_t: Tensor, t: Level | Tensor) -> Fed:
        """Return what the network is fed for x_t, (B, C, H, W), at the level `t`, one or (B,)."""
        level = self.process.level_tensor(t, x_t.shape[0], x_t.device)
        time = self.process.network_time(level)
        if time.is_floating_point():
            time = time.float()
        return (
            self.process.network_input(x_t, level).to(self.dtype),
            time,
            self.given(x_t),
        )

    def given(self, x_t: Tensor) -> dict[str, Any]:
        """Return the conditions of the images x_t, (B, C, H, W), by argument."""
        if self.condition is None:
            return {}
        height, width = (side * self.input_stride for side in x_t.shape[-2:])
        return self.condition.arguments(len(x_t), self.dtype, (height, width))

    def denoise(self, x_t: Tensor, t: Level | Tensor, *, compiled: bool = False) -> Tensor:
        """Return the whole network's output, (B, out_channels, H, W).

        With a learned variance, out_channels is twice the number of channels of x_t.

        Args:
            x_t, t, compiled: as in `features`.
        """
        return self.output_of(self.fed(x_t, t), compiled=compiled)

    def output_of(self, fed: Fed, *, compiled: bool = False) -> Tensor:
        """Return the whole network's output, as `denoise`, for what the network is fed.

        A sampler that scales x_t and names the time itself calls this.
        """

        def whole(fed: Fed) -> Tensor:
            return self._forward(*fed)

        return self.run(compiled, "the whole network", "denoise", whole, fed)

    def _forward(self, sample: Tensor, time: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Return the network's output, (B, out_channels, H, W)."""
        return self.network(sample, time, **given).sample

    def fingerprint(self) -> str:
        network = self.network
        architecture = {key: value for key, value in network.config.items() if not key.startswith("_")}
        described = [json.dumps(architecture, sort_keys=True, default=str).encode()]
        described += [self.process.fingerprint()]
        if self.condition is not None:
            described += [self.condition.fingerprint()]
        if self.autoencoder is not None:
            described += [self.autoencoder.fingerprint().encode()]
        return digest_of(network, *described)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but compiled graphs, which are made again."""
        return {**self.__dict__, "_graphs": None}

    def train(self, mode: bool = True) -> "DiffusionBackbone":
        """Stay in evaluation mode: a frozen network has no dropout while the head is trained."""
        return super().train(False)

    def run(
        self, compiled: bool, name: str, key: Hashable, function: Callable[..., Any], *inputs: Any
    ) -> Any:
        """Return `function(*inputs)`, computed directly, or compiled with all maps in channels-last order.

        Arguments as in `CompiledGraphs.__call__`.
        """
        if not compiled:
            return function(*inputs)
        if self._graphs is None:
            self._graphs = CompiledGraphs(self.launch_bound if self.cuda_graphs is None else self.cuda_graphs)
            with torch.inference_mode(False), torch.no_grad():  # weights of a later training
                self.network.to(memory_format=torch.channels_last)
        return self._graphs(name, (key, self.dtype), function, *inputs)


def check_channels(taken: int, given: int | None, autoencoder: Autoencoder | None, source: str) -> None:
    """Refuse a network that takes more than x_t, or whose output is no prediction for x_t.

    Args:
        taken, given: channels of the network's input and of its output; None: not known.
        autoencoder: makes the latents that the network reads; None: it reads pixels.
        source: the network's name in the message.

    Raises:
        DiffLensError: the channels say so, or the latents have others.
    """
    read = taken if autoencoder is None else autoencoder.channels
    possible = (1, 3) if autoencoder is None else (read,)
    predicted = [*possible, *(2 * channels for channels in possible)]  # the latter with a learned variance
    if taken not in possible and given is not None and given in predicted and given < taken:
        raise DiffLensError(
            f"{source} takes {counted(taken, 'channel')} and gives {given}: besides x_t it is fed more, an "
            "image or a mask for example, which difflens cannot give"
        )
    if taken != read:
        raise DiffLensError(
            f"{source} takes {counted(taken, 'channel')}, and its autoencoder makes latents of {read}: they "
            "do not belong together"
        )
    if taken not in possible:
        raise DiffLensError(
            f"{source} takes {counted(taken, 'channel')}, which are latents, and has no vae/ or vqvae/ "
            "folder: name the autoencoder's folder with --autoencoder"
        )
    if given not in (None, read, 2 * read):
        raise DiffLensError(
            f"{source} takes {counted(taken, 'channel')} and gives {given}: that is no prediction for x_t"
        )
