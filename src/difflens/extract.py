"""Extractors: images to feature maps at chosen blocks and noise steps.

FrozenExtractor     reads the frozen backbone
FeedbackExtractor   DifFeed: reads its second pass, in which decoder maps return to the encoder; trainable
FineTunedExtractor  trains the backbone itself, from a block up
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from difflens.backbones.blocks import Backbone, Block
from difflens.errors import DiffLensError, listing
from difflens.heads.base import MapShape, Place
from difflens.noise import seeded_noise
from difflens.training import warn


class Extractor(nn.Module, ABC):
    """What every extractor shares: the backbone, the places it reads and the noise it adds.

    Args:
        backbone: any backbone; its own parameters stay as frozen or trainable as the extractor leaves them.
        blocks, noise_steps: what to read, every block at every noise step.
        seed: of the noise.
        draws: how many noises the maps are averaged over.

    Attributes:
        compiled: run the backbone compiled; None: on a CUDA device. Maps differ from those that are not compiled by
            rounding.
        joint: read several noise steps in one batch while training; None: on a CUDA device. In evaluation each is read
            alone always, since the last bits of a map depend on the size of its batch.

    Raises:
        DiffLensError: the backbone has no such block or noise step.
    """

    trainable: bool
    compiled: bool | None = None
    joint: bool | None = None
    mixes_images = False
    """Whether an image's maps depend on its batch in training, so that noise steps must not share one."""

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[int],
        seed: int = 0,
        draws: int = 1,
    ):
        super().__init__()
        if draws < 1:
            raise DiffLensError(f"features are averaged over at least one noise draw, not {draws}")
        self.backbone = backbone
        self.blocks = backbone.check_blocks(blocks)
        self.noise_steps = backbone.check_noise_steps(noise_steps)
        self.seed, self.draws = seed, draws

    @property
    def places(self) -> list[Place]:
        return [(block, t) for t in self.noise_steps for block in self.blocks]

    def shapes(self, side: int | None = None) -> dict[Place, MapShape]:
        """(C, H, W) of every map for images of `side` pixels; by default the backbone's own size."""
        side = side or self.backbone.image_size
        self.backbone.check_side(side)
        return {
            (index, t): (block.channels, side // block.stride, side // block.stride)
            for index, t in self.places
            for block in [self.backbone.block(index)]
        }

    def forward(self, images: Tensor, index: Tensor, draw: int = 0) -> dict[Place, Tensor]:
        """Maps (B, C, H, W) float32 by (block, noise step).

        Args:
            images: (B, C, S, S) in [-1, 1].
            index: of each image in its data set, (B,) long: with the seed, it fixes the image's noise.
            draw: which noise; 0 for evaluation, epoch + 1 in training with fresh noise.
        """
        maps: dict[Place, Tensor] = {}
        for each in range(draw * self.draws, (draw + 1) * self.draws):
            for place, feature in self._read_all(images, index, each).items():
                maps[place] = maps[place] + feature.float() if place in maps else feature.float()
        return maps if self.draws == 1 else {place: total / self.draws for place, total in maps.items()}

    def _read_all(self, images: Tensor, index: Tensor, draw: int) -> dict[Place, Tensor]:
        """The maps of one draw, in the backbone's precision."""
        noised = {t: self._noised(images, index, t, draw) for t in self.noise_steps}
        if len(noised) > 1 and self.training and not self.mixes_images and self._default(self.joint):
            try:
                return self._read_jointly(noised, len(images))
            except torch.OutOfMemoryError:
                self.joint = False
                warn(f"no memory for {len(noised)} noise steps in one batch: they are read one by one")
        return {(block, t): maps for t, x_t in noised.items() for block, maps in self._read(x_t, t).items()}

    def _read_jointly(self, noised: dict[int, Tensor], count: int) -> dict[Place, Tensor]:
        x_t = torch.cat(list(noised.values()))
        steps = torch.tensor(list(noised), device=x_t.device).repeat_interleave(count)
        parts = {block: maps.split(count) for block, maps in self._read(x_t, steps).items()}
        return {
            (block, t): split[number] for number, t in enumerate(noised) for block, split in parts.items()
        }

    def _default(self, choice: bool | None) -> bool:
        """A choice that is left open is for a CUDA device."""
        return self.backbone.device.type == "cuda" if choice is None else choice

    @property
    def trained_blocks(self) -> dict[int, list[nn.Parameter]]:
        """The parameters of each backbone block that is trained, in the order of the blocks."""
        return {}

    @abstractmethod
    def _read(self, x_t: Tensor, t: int | Tensor) -> dict[int, Tensor]:
        """The maps by block, of one noise step or of one for each image."""

    def _noised(self, images: Tensor, index: Tensor, t: int, draw: int) -> Tensor:
        if self.backbone.num_noise_steps == 1:
            return images
        noise = seeded_noise(tuple(images.shape[1:]), index, t, self.seed, draw)
        dtype = next(self.backbone.parameters()).dtype
        return self.backbone.add_noise(images, t, noise).to(dtype)


class FrozenExtractor(Extractor):
    """The maps of the frozen backbone: a fixed function of image, seed and draw."""

    trainable = False

    def _read(self, x_t: Tensor, t: int | Tensor) -> dict[int, Tensor]:
        with torch.no_grad():
            return self.backbone.features(x_t, t, self.blocks, compiled=self._default(self.compiled))


class FeedbackExtractor(Extractor):
    """DifFeed (paper section 3.3): two passes over the same x_t.

    The first pass, without gradient, collects decoder maps. Each goes through its own feedback layer (1x1 convolution
    without bias to the mirror block's channels, batch normalisation, ReLU), is resized bilinearly to the mirror's
    size, and is added to the mirror's output in the second pass, which is read. Only feedback layers are trained.

    Args:
        feedback_blocks: decoder blocks to send back; by default the backbone's own choice.

    Attributes:
        checkpoint: keep less of the second pass for its gradient, and compute it again: larger batches, slower steps.

    Raises:
        DiffLensError: a feedback block is not a decoder block, or the backbone has no decoder.
    """

    trainable = True
    checkpoint: bool = False
    mixes_images = True  # the batch normalisation of the feedback layers

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[int],
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
                f"only decoder blocks can be fed back, not block {listing(wrong)}: {backbone.describe_blocks()}"
            )
        entered = min(self._mirror(block).index for block in self.feedback_blocks)
        early = [block for block in self.blocks if block < entered]
        if early:
            raise DiffLensError(
                f"block {listing(early)} comes before block {entered}, the first that feedback enters: read later "
                "blocks, or feed back later decoder blocks"
            )
        self.feedback = nn.ModuleDict({str(block): self._layer(block) for block in self.feedback_blocks})

    def _mirror(self, block: int) -> Block:
        """The encoder block that `block` sends to."""
        mirror = self.backbone.block(block).mirror
        assert mirror is not None, "every decoder block takes a skip"
        return self.backbone.block(mirror)

    def _layer(self, block: int) -> nn.Module:
        source, target = self.backbone.block(block), self._mirror(block)
        return nn.Sequential(
            nn.Conv2d(source.channels, target.channels, 1, bias=False),
            nn.BatchNorm2d(target.channels),
            nn.ReLU(),
        )

    def _read(self, x_t: Tensor, t: int | Tensor) -> dict[int, Tensor]:
        return self.backbone.features_with_feedback(
            x_t, t, self.blocks, self.feedback_blocks, lambda maps: self._respond(maps, x_t),
            compiled=self._default(self.compiled), checkpoint=self.checkpoint and torch.is_grad_enabled(),
        )  # fmt: skip

    def _respond(self, maps: dict[int, Tensor], x_t: Tensor) -> dict[int, Tensor]:
        """The feedback for each mirror, from the first pass's maps."""
        feedback = {}
        for block in self.feedback_blocks:
            mirror = self._mirror(block)
            size = tuple(side // mirror.stride for side in x_t.shape[-2:])
            sent = self.feedback[str(block)](maps[block].float())
            sent = nn.functional.interpolate(sent, size, mode="bilinear", align_corners=False)
            feedback[mirror.index] = sent.to(x_t.dtype)
        return feedback


class FineTunedExtractor(Extractor):
    """The backbone's own maps, with its parameters from block `from_block` up to the last block read trainable."""

    trainable = True

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[int],
        seed: int = 0,
        from_block: int = 1,
        draws: int = 1,
    ):
        super().__init__(backbone, blocks, noise_steps, seed, draws)
        backbone.block(from_block)
        if from_block > max(self.blocks):
            raise DiffLensError(
                f"nothing to fine-tune: block {from_block} comes after block {max(self.blocks)}, the last that is read"
            )
        self.from_block = from_block
        backbone.requires_grad_(False)
        for parameters in self.trained_blocks.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    @property
    def trained_blocks(self) -> dict[int, list[nn.Parameter]]:
        return {
            block: [p for module in self.backbone.modules_of(block) for p in module.parameters()]
            for block in range(self.from_block, max(self.blocks) + 1)
        }

    def _read(self, x_t: Tensor, t: int | Tensor) -> dict[int, Tensor]:
        return self.backbone.features(x_t, t, self.blocks)
