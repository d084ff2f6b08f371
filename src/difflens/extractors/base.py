"""The contract of an extractor: images to feature maps at chosen blocks and noise steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from difflens.backbones.base import Backbone
from difflens.backbones.maps import ImageSize, MapShape, Place, sides_of
from difflens.errors import DiffLensError, counted
from difflens.noise import content_index, seeded_noise
from difflens.processes.base import Level
from difflens.processes.clean import Clean
from difflens.run.console import warn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode without gradients; restore the mode of each part afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class Extractor(nn.Module, ABC):
    """Base of extractors: the backbone, the places that are read, and the noise that is added.

    Args:
        backbone: any backbone; each kind of extractor decides which of its parameters are trained.
        blocks, noise_steps: the places: each block at each noise step.
        seed: seed of the noise.
        draws: the number of noise samples that the maps are averaged over.

    Attributes:
        trainable: True if the extractor has parameters to train.
        compiled: compile the backbone; None: on a CUDA device only. Compiled maps differ by rounding errors.
        joint: read several noise steps in one batch in training; None: on a CUDA device only. Evaluation
            reads noise steps one by one, since the last bits of a map depend on the size of its batch.
        mixes_images: True if an image's maps depend on the other images of its batch in training. Noise steps
            are then never read in one batch.

    Raises:
        DiffLensError: the backbone has no such block or noise step.
    """

    trainable: bool
    compiled: bool | None = None
    joint: bool | None = None
    mixes_images = False

    def __init__(
        self,
        backbone: Backbone,
        blocks: Iterable[int],
        noise_steps: Iterable[Level],
        seed: int = 0,
        draws: int = 1,
    ):
        super().__init__()
        if draws < 1:
            raise DiffLensError(f"features are averaged over at least one noise sample, not {draws}")
        if draws > 1 and isinstance(backbone.process, Clean):
            raise DiffLensError(f"{backbone.spec} reads images without noise: leave out --draws")
        self.backbone = backbone
        self.blocks = backbone.check_blocks(blocks)
        self.noise_steps = backbone.check_noise_steps(noise_steps)
        self.seed, self.draws = seed, draws

    @property
    def places(self) -> list[Place]:
        """The places that are read: (block, noise step)."""
        return [(block, t) for t in self.noise_steps for block in self.blocks]

    def shapes(self, size: ImageSize | None = None) -> dict[Place, MapShape]:
        """Return (C, H, W) of the map at each place for images of `size`; None: the backbone's own size.

        Raises:
            DiffLensError: the backbone does not take images of this size.
        """
        size = size or self.backbone.image_size
        self.backbone.check_size(size)
        height, width = sides_of(size)
        return {
            (index, t): (block.channels, height // block.stride, width // block.stride)
            for index, t in self.places
            for block in [self.backbone.block(index)]
        }

    def forward(self, images: Tensor, index: Tensor, draw: int = 0) -> dict[Place, Tensor]:
        """Return the maps, (B, C, H, W) float32, by place.

        Args:
            images: (B, C, H, W) in [-1, 1]; see `Backbone.check_size`.
            index: (B,) long: the position of each image in its data set. With the seed it decides the image's
                noise.
            draw: the number of the noise sample: 0 for evaluation, epoch + 1 in training with fresh
                noise. With several `draws`, each number stands for so many samples.

        Raises:
            DiffLensError: the images are not floating-point, or a latent is not finite.
        """
        if not images.is_floating_point():
            raise DiffLensError(f"images of dtype {images.dtype}: give floating-point numbers in [-1, 1]")
        return self.read(self.backbone.encode(images), index, draw)

    def content_index(self, images: Tensor) -> Tensor:
        """Return (B,) long: numbers by the images' content, which decide their noise; 0 without noise."""
        if isinstance(self.backbone.process, Clean):
            return torch.zeros(len(images), dtype=torch.long, device=images.device)
        return content_index(images)

    def read(self, x_0: Tensor, index: Tensor, draw: int = 0) -> dict[Place, Tensor]:
        """Return the maps, (B, C, H, W) float32, by place.

        Args:
            x_0: images or latents, as from `Backbone.encode`, (B, C, H, W).
            index, draw: as for `forward`.
        """
        maps: dict[Place, Tensor] = {}
        # the mean over noise samples
        for number in range(draw * self.draws, (draw + 1) * self.draws):
            for place, feature in self._read_all(x_0, index, number).items():
                maps[place] = maps[place] + feature.float() if place in maps else feature.float()
        return maps if self.draws == 1 else {place: total / self.draws for place, total in maps.items()}

    def noised(self, x_0: Tensor, index: Tensor, draw: int = 0) -> dict[Level, Tensor]:
        """Return x_t, (B, C, H, W), by noise level.

        Args:
            x_0: images or latents, as from `Backbone.encode`, (B, C, H, W).
            index, draw: as for `forward`.
        """
        return {t: self._noised(x_0, index, t, draw) for t in self.noise_steps}

    def _read_all(self, x_0: Tensor, index: Tensor, draw: int) -> dict[Place, Tensor]:
        """Return the maps of one noise sample, in the backbone's precision."""
        noised = self.noised(x_0, index, draw)
        if len(noised) > 1 and self.training and not self.mixes_images and self._default(self.joint):
            try:
                return self._read_jointly(noised, len(x_0))
            except torch.OutOfMemoryError:
                self.joint = False
                warn(
                    f"too little memory for {counted(len(noised), 'noise step')} in one batch: they are "
                    "read one by one"
                )
        return {(block, t): maps for t, x_t in noised.items() for block, maps in self._read(x_t, t).items()}

    def _read_jointly(self, noised: dict[Level, Tensor], count: int) -> dict[Place, Tensor]:
        """Return the maps of `count` images at several noise steps, read in one batch."""
        x_t, levels = torch.cat(list(noised.values())), torch.tensor(list(noised), dtype=torch.float64)
        steps = self.backbone.process.level_tensor(levels, len(noised), x_t.device)
        steps = steps.repeat_interleave(count)
        parts = {block: maps.split(count) for block, maps in self._read(x_t, steps).items()}
        return {
            (block, t): split[number] for number, t in enumerate(noised) for block, split in parts.items()
        }

    def _default(self, choice: bool | None) -> bool:
        """Return `choice`, or, if it is None, True on a CUDA device, unless torch.compile traces the call."""
        if choice is None and torch.compiler.is_compiling():
            return False
        return self.backbone.device.type == "cuda" if choice is None else choice

    @property
    def trained_blocks(self) -> dict[int, list[nn.Parameter]]:
        """The parameters of each block of the backbone that is trained, in the order of the blocks."""
        return {}

    @abstractmethod
    def _read(self, x_t: Tensor, t: Level | Tensor) -> dict[int, Tensor]:
        """Return the maps by block, at one noise level for all images, or at one for each image, (B,)."""

    def _noised(self, x_0: Tensor, index: Tensor, t: Level, draw: int) -> Tensor:
        """Return x_t in the backbone's precision; x_0 itself for a backbone that reads clean images."""
        backbone = self.backbone
        if isinstance(backbone.process, Clean):
            return x_0
        noise = seeded_noise(tuple(x_0.shape[1:]), index, t, self.seed, draw)
        return backbone.add_noise(x_0, t, noise).to(backbone.dtype)
