"""The backbone contract: what every source of features offers, whatever network stands behind it."""

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
"""What a denoiser may say of x_t, so that it can be sampled from."""

Respond = Callable[[dict[int, Tensor]], dict[int, Tensor]]
"""Maps of decoder blocks to feedback for encoder blocks."""


@dataclass(frozen=True)
class Block:
    """One place where features can be read.

    Attributes:
        index: position in execution order, from 1.
        role: the part of the network it belongs to.
        channels: channels of its output map.
        stride: input side divided by the side of its output map.
        mirror: index of the encoder block whose skip it concatenates (decoder) or of the decoder block
            that reads its skip (encoder); None for the middle and for networks without a decoder.
    """

    index: int
    role: Role
    channels: int
    stride: int
    mirror: int | None = None


@dataclass(frozen=True)
class Defaults:
    """Where probes read a backbone if the user names nothing.

    Attributes:
        block, noise_step: of single-map heads.
        fusion_blocks, fusion_noise_steps: of DifFormer.
        feedback_blocks: decoder blocks whose maps DifFeed sends back to their mirrors.
        token_side: side that the attention head and DifFormer pool larger maps to; the paper's is 16.
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
        spec: what `load_backbone` was given, so that a saved model can find its backbone again.
        blocks: every block in execution order.
        in_channels: image channels the network takes.
        image_size: side of the square images it was trained on, in pixels.
        defaults: where probes read if the user names nothing.
    """

    spec: str
    blocks: tuple[Block, ...]
    in_channels: int
    image_size: int
    defaults: Defaults

    @property
    @abstractmethod
    def num_noise_steps(self) -> int:
        """Noise steps are 0 .. num_noise_steps - 1; 1 means the backbone sees clean images only."""

    @abstractmethod
    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Forward process: images in [-1, 1] and standard normal `noise`, both (B, C, H, W), to x_t."""

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
        """Feature maps of `blocks`, each (B, channels, H / stride, W / stride); stops after the last one.

        Args:
            x_t: noised images, (B, C, H, W).
            t: the noise step, one for all or one per image, (B,) long.
            blocks: block indices, in any order.
            feedback: tensors added to the output of the encoder blocks that key them, before it is stored
                as a skip (DifFeed, paper section 3.3).
            compiled: through one compiled graph for these blocks and this shape, where the backbone has something to
                compile. The first call takes up to minutes; maps differ from those that are not compiled by rounding.
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
        """Two passes over the same x_t (DifFeed, paper section 3.3); the maps of `blocks` in the second.

        Args:
            collect: decoder blocks whose maps the first pass, without gradient, gives to `respond`.
            respond: from those maps to the feedback of their mirrors.
            compiled: as for `features`, each pass.
            checkpoint: keep only what enters each block of the second pass, and compute the block again for its
                gradient (Chen et al., 2016): less memory, a third more time.
        """
        raise DiffLensError(f"feedback needs a decoder: {self.describe_blocks()}")

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of architecture, schedule and weights: equal for equal features."""

    @abstractmethod
    def modules_of(self, block: int) -> list[nn.Module]:
        """The submodules that compute `block`, for fine-tuning."""

    @property
    def generates(self) -> bool:
        """Can `difflens.sample` draw images from it?"""
        return False

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def block(self, index: int) -> Block:
        """The block numbered `index`; a DiffLensError that lists what there is if there is none."""
        if not 1 <= index <= len(self.blocks):
            raise DiffLensError(f"no block {index}: {self.describe_blocks()}")
        return self.blocks[index - 1]

    def of_role(self, role: Role) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks if block.role == role)

    def describe_blocks(self) -> str:
        """For example "the backbone has 37 blocks: encoder 1-18, middle 19, decoder 20-37"."""
        parts = []
        for role in ("encoder", "middle", "decoder"):
            indices = [block.index for block in self.of_role(role)]
            if indices:
                span = f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else f"{indices[0]}"
                parts.append(f"{role} {span}")
        return f"the backbone has {len(self.blocks)} blocks: {', '.join(parts)}"

    def check_blocks(self, blocks: Iterable[int]) -> tuple[int, ...]:
        """`blocks` sorted and without repetitions; DiffLensError for none or for one that does not exist."""
        indices = tuple(sorted(set(blocks)))
        if not indices:
            raise DiffLensError(f"no block asked for: {self.describe_blocks()}")
        for index in indices:
            self.block(index)
        return indices

    def check_noise_steps(self, noise_steps: Iterable[int]) -> tuple[int, ...]:
        """`noise_steps` sorted and without repetitions; DiffLensError for none or one outside the schedule."""
        steps = tuple(sorted(set(noise_steps)))
        if not steps:
            raise DiffLensError("no noise step asked for")
        outside = [t for t in steps if not 0 <= t < self.num_noise_steps]
        if outside:
            raise DiffLensError(
                f"noise step {listing(outside)} is outside the schedule: "
                f"the backbone has noise steps 0 to {self.num_noise_steps - 1}"
            )
        return steps

    def check_side(self, side: int) -> None:
        """DiffLensError if images of `side` pixels do not divide evenly down to the deepest block."""
        stride = max(block.stride for block in self.blocks)
        if side % stride:
            raise DiffLensError(
                f"image side {side} is not a multiple of {stride}, the backbone's largest stride"
            )

    def check_feedback(self, feedback: Iterable[int]) -> None:
        """DiffLensError if feedback is meant for a block that is not an encoder block."""
        encoder = [block.index for block in self.of_role("encoder")]
        wrong = sorted(set(feedback) - set(encoder))
        if wrong:
            raise DiffLensError(
                f"feedback enters encoder blocks only, not block {listing(wrong)}: {self.describe_blocks()}"
            )


class CleanBackbone(Backbone):
    """A backbone of clean images: its only noise step, 0, adds nothing."""

    @property
    def num_noise_steps(self) -> int:
        return 1

    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        return images


class DiffusionBackbone(Backbone):
    """A backbone with a noise schedule and a denoiser: it can also generate."""

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
        """The full network's output, (B, out_channels, H, W); with learned variance twice the channels."""


def digest_of(network: nn.Module, *described: bytes) -> str:
    """Hex digest of what describes a network, and of the names and values of all its weights."""
    digest = hashlib.sha256(b"".join(described))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
