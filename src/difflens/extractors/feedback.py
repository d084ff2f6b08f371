"""The feedback layers of DifFeed (paper section 3.3): decoder maps return to the encoder for a second
pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from difflens.backbones.base import Backbone, Block
from difflens.errors import DiffLensError, listing
from difflens.extractors.base import Extractor
from difflens.processes.base import Level


class FeedbackExtractor(Extractor):
    """DifFeed (paper section 3.3): two passes over the same x_t.

    The first pass collects decoder maps without gradients. A feedback layer of each map (1x1 convolution
    without bias to the mirror block's channels, batch normalisation, ReLU) gives the feedback. It is resized
    bilinearly to the mirror's size, and added to the mirror's output in the second pass, which is read. Only
    feedback layers are trained.

    Args:
        feedback_blocks: the decoder blocks that are sent back. None: chosen by the backbone.

    Attributes:
        checkpoint: recompute the second pass in the backward pass. It takes less memory, and steps are
            slower.

    Raises:
        DiffLensError: a feedback block is not a decoder block, the backbone has no decoder, or a block to
            read comes before the first block that receives feedback.
    """

    trainable = True
    checkpoint: bool = False
    mixes_images = True  # the batch normalisation of the feedback layers

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[Level],
        seed: int = 0,
        feedback_blocks: Iterable[int] | None = None,
        draws: int = 1,
    ):
        super().__init__(backbone, blocks, noise_steps, seed, draws)
        chosen = backbone.defaults.feedback_blocks if feedback_blocks is None else tuple(feedback_blocks)
        if not chosen:
            raise DiffLensError(f"feedback needs a decoder; {backbone.describe_blocks()}")
        self.feedback_blocks = backbone.check_blocks(chosen)
        wrong = [block for block in self.feedback_blocks if backbone.block(block).role != "decoder"]
        if wrong:
            raise DiffLensError(
                f"only decoder blocks can be fed back, not block {listing(wrong)}: "
                f"{backbone.describe_blocks()}"
            )
        entered = min(self._mirror(block).index for block in self.feedback_blocks)
        early = [block for block in self.blocks if block < entered]
        if early:
            raise DiffLensError(
                f"block {listing(early)} comes before block {entered}, the first that feedback enters: read "
                "later blocks, or feed back later decoder blocks"
            )
        layers = {str(block): self._layer(block) for block in self.feedback_blocks}
        self.feedback = nn.ModuleDict(layers).to(backbone.device)

    def _mirror(self, block: int) -> Block:
        """Return the encoder block that receives the feedback of `block`: the other end of its skip
        connection."""
        mirror = self.backbone.block(block).mirror
        assert mirror is not None, "every decoder block takes a skip"
        return self.backbone.block(mirror)

    def _layer(self, block: int) -> nn.Module:
        """Return the feedback layer of a decoder block."""
        source, target = self.backbone.block(block), self._mirror(block)
        return nn.Sequential(
            nn.Conv2d(source.channels, target.channels, 1, bias=False),
            nn.BatchNorm2d(target.channels),
            nn.ReLU(),
        )

    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        return self.backbone.features_with_feedback(
            x_t,
            t,
            self.blocks,
            self.feedback_blocks,
            lambda maps: self._respond(maps, x_t),
            compiled=self._default(self.compiled),
            checkpoint=self.checkpoint and torch.is_grad_enabled(),
        )

    def _respond(self, maps: dict[int, Tensor], x_t: Tensor) -> dict[int, Tensor]:
        """Return the feedback by mirror block, from the maps of the first pass."""
        feedback = {}
        for block in self.feedback_blocks:
            mirror = self._mirror(block)
            size = tuple(side * self.backbone.input_stride // mirror.stride for side in x_t.shape[-2:])
            layer: Any = self.feedback[str(block)]
            sent = layer(maps[block].to(layer[0].weight.dtype))
            sent = nn.functional.interpolate(sent, size, mode="bilinear", align_corners=False)
            feedback[mirror.index] = sent.to(x_t.dtype)
        return feedback
