"""The contract of a backbone: the interface of every network that features are read from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from difflens.errors import DiffLensError, listing
from difflens.noise import NoiseSchedule

Role = Literal["encoder", "middle", "decoder"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""The predictions of a denoiser that samplers support, by diffusers' names."""

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
        fusion_blocks, fusion_noise_steps: the blocks and noise steps for DifFormer.
        feedback_blocks: the decoder blocks whose maps DifFeed sends back to their mirrors.
        token_side: the attention head and DifFormer pool larger maps to this side; it is 16 in the paper.
    """

    block: int
    noise_step: int
    fusion_blocks: tuple[int, ...]
    fusion_noise_steps: tuple[int, ...]
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
    """

    spec: str
    blocks: tuple[Block, ...]
    in_channels: int
    image_size: int
    defaults: Defaults

    @property
    @abstractmethod
    def num_noise_steps(self) -> int:
        """T: noise steps are 0 .. T - 1. It is 1 for a backbone that reads clean images only."""

    @abstractmethod
    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Return x_t, (B, C, H, W): the forward process on images in [-1, 1] with standard normal `noise`.

        Args:
            images, noise: (B, C, H, W).
            t: the noise step, one for all images or (B,) long.
        """

    @abstractmethod
    def features(
        self,
        x_t: Tensor,
        t: int | Tensor,
        blocks: Iterable[int],
        feedback: Mapping[int, Tensor] | None = None,
        *,
        compiled: bool = False,
    ) -> dict[int, Tensor]:
        """Return the feature maps of `blocks`, (B, channels, H / stride, W / stride) each, by block index.

        The network stops after the last of these blocks.

        Args:
            x_t: noised images, (B, C, H, W).
            t: the noise step, one for all images or (B,) long.
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
        t: int | Tensor,
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
        """Return the submodules that compute `block`, for fine-tuning."""

    @property
    def generates(self) -> bool:
        """True if `difflens.sample` can draw images from the backbone."""
        return False

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU for a backbone without weights."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

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
        return f"the backbone has {len(self.blocks)} blocks: {', '.join(parts)}"

    def check_blocks(self, blocks: Iterable[int]) -> tuple[int, ...]:
        """Return `blocks` sorted and without repetitions.

        Raises:
            DiffLensError: `blocks` is empty, or one of them does not exist.
        """
        indices = tuple(sorted(set(blocks)))
        if not indices:
            raise DiffLensError(f"no block is named: {self.describe_blocks()}")
        for index in indices:
            self.block(index)
        return indices

    def check_noise_steps(self, noise_steps: Iterable[int]) -> tuple[int, ...]:
        """Return `noise_steps` sorted and without repetitions.

        Raises:
            DiffLensError: `noise_steps` is empty, or one of them is outside the schedule.
        """
        steps = tuple(sorted(set(noise_steps)))
        if not steps:
            raise DiffLensError(f"no noise step is named: the backbone has 0 to {self.num_noise_steps - 1}")
        outside = [t for t in steps if not 0 <= t < self.num_noise_steps]
        if outside:
            raise DiffLensError(
                f"noise step {listing(outside)} is outside the schedule: "
                f"the backbone has noise steps 0 to {self.num_noise_steps - 1}"
            )
        return steps

    def check_side(self, side: int) -> None:
        """Raise a DiffLensError if the largest stride of the blocks does not divide `side`, in pixels."""
        stride = max(block.stride for block in self.blocks)
        if side % stride:
            raise DiffLensError(
                f"image side {side} is not a multiple of {stride}, the backbone's largest stride"
            )

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

    @property
    def num_noise_steps(self) -> int:
        return 1

    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        return images


class DiffusionBackbone(Backbone):
    """A backbone with a noise schedule and a denoiser, which can also generate images.

    Attributes:
        schedule: the forward process.
        prediction_type: the denoiser's prediction, one of `PREDICTIONS` for one that can generate.
    """

    schedule: NoiseSchedule
    prediction_type: str

    @property
    def generates(self) -> bool:
        return self.prediction_type in PREDICTIONS

    @property
    def num_noise_steps(self) -> int:
        return self.schedule.num_steps

    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        return self.schedule.add_noise(images, t, noise)

    @abstractmethod
    def denoise(self, x_t: Tensor, t: int | Tensor, *, compiled: bool = False) -> Tensor:
        """Return the whole network's output, (B, out_channels, H, W).

        With a learned variance, out_channels is twice the number of image channels.

        Args:
            x_t, t, compiled: as in `features`.
        """


def digest_of(network: nn.Module, *described: bytes) -> str:
    """Return a hex digest of a network's description and of the names and values of all its weights."""
    digest = hashlib.sha256(b"".join(described))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
