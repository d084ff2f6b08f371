"""The contract of an extractor: images to feature maps at chosen blocks and noise steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.backbones.maps import MapShape, Place
from difflens.errors import DiffLensError
from difflens.noise import seeded_noise
from difflens.run.console import warn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode comes back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


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

    def noised(self, images: Tensor, index: Tensor, draw: int = 0) -> dict[int, Tensor]:
        """The noised images that the backbone sees, (B, C, S, S), by noise step; arguments as for `forward`."""
        return {t: self._noised(images, index, t, draw) for t in self.noise_steps}

    def _read_all(self, images: Tensor, index: Tensor, draw: int) -> dict[Place, Tensor]:
        """The maps of one draw, in the backbone's precision."""
        noised = self.noised(images, index, draw)
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
