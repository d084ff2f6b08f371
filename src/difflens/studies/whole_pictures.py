"""Feature maps of whole pictures, each resized to a square, for studies of positions."""

import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.choices import Precision
from difflens.configs.match import CorrespondenceOptions
from difflens.configs.options import given
from difflens.data.images import stretch, to_float
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.extractors.config import ExtractorConfig
from difflens.processes.base import Level, in_words
from difflens.tasks.dense import check_maps


class WholePictures:
    """Reads the feature map of a picture at one place.

    Args:
        backbone: on the device where it reads.
        options: the place, the draws and the side.
        precision: floating-point format of the backbone.
        seed: seed of the noise.

    Attributes:
        block, noise_step: the place.
        side: side of the square that pictures are resized to, in pixels.

    Raises:
        DiffLensError: the backbone has no such place, or does not take squares of this side.
    """

    def __init__(self, backbone: Backbone, options: CorrespondenceOptions, precision: Precision, seed: int):
        self.backbone = backbone
        self.block = backbone.block(options.block or backbone.defaults.block).index
        step = backbone.defaults.noise_step if options.noise_step is None else options.noise_step
        (self.noise_step,) = backbone.check_noise_steps((step,))
        self.side = options.side or backbone.image_size
        backbone.check_size(self.side)
        check_maps(backbone, (self.block,), self.side)
        backbone.require_memory(1, (self.block,), self.side)
        self.extractor = ExtractorConfig(
            "frozen", (self.block,), (self.noise_step,), seed, precision=precision, draws=given(options.draws)
        ).build(backbone)

    @property
    def place(self) -> tuple[int, Level]:
        """(block, noise step)."""
        return self.block, self.noise_step

    def describe(self) -> str:
        """Return the place in words."""
        level = in_words(self.backbone.process.by_noise((self.noise_step,)))
        return f"block {self.block} at noise step {level}"

    def map(self, image: Tensor, index: int) -> Tensor:
        """Return the feature map of a picture, (C, H, W) float32, on the backbone's device.

        Args:
            image: uint8, (C, H, W).
            index: number of the picture, which with the seed decides its noise.

        Raises:
            DiffLensError: a feature is not finite.
        """
        square = stretch(image, self.backbone.in_channels, self.side)[None].to(self.backbone.device)
        with evaluating(self.extractor):
            number = torch.tensor([index], device=self.backbone.device)
            features = self.extractor(to_float(square), number)[self.place][0]
        if not features.isfinite().all():
            raise DiffLensError(
                f"the features of {self.describe()} are not finite: read another block, or check the "
                "backbone and its image range"
            )
        return features
