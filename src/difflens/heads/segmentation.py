"""Heads of semantic segmentation: maps in, logits of each pixel out."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place
from difflens.errors import DiffLensError
from difflens.heads.config import SegmentationHeadConfig
from difflens.heads.pyramid import FeaturePyramid


class SegmentationHead(nn.Module):
    """UPerNet or a linear layer on the pyramid.

    Args:
        config: name, strides and widths.
        shapes: (C, H, W) of the maps for images of `config.side` pixels, by place.
        num_classes: number of logits of a pixel.

    Raises:
        DiffLensError: segmentation-models-pytorch, which has UPerNet, is not installed, or a level has one
            channel.
    """

    def __init__(self, config: SegmentationHeadConfig, shapes: Mapping[Place, MapShape], num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        strides = config.strides if config.name == "upernet" else None
        self.pyramid = FeaturePyramid(shapes, config.side, strides, config.width if config.mix else None)
        self.read = (
            _UPerNet(self.pyramid.channels, num_classes, config.width, config.dropout)
            if config.name == "upernet"
            else _Linear(self.pyramid.channels, num_classes)
        )

    def forward(self, maps: Mapping[Place, Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits (B, num_classes, *size) of maps (B, C, H, W), by (block, noise step)."""
        return _upsampled(self.read(self.pyramid(maps)), size)


class _Linear(nn.Module):
    """One 1x1 convolution over all levels, upsampled to the finest.

    Both operations are linear, so the convolution runs before the upsampling, level by level.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(count, num_classes, 1, bias=k == 0) for k, count in enumerate(channels)
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        size = (levels[0].shape[2], levels[0].shape[3])
        logits: Tensor = self.layers[0](levels[0])
        for layer, level in zip(list(self.layers)[1:], levels[1:], strict=True):
            logits = logits + _upsampled(layer(level), size)
        return logits


class _UPerNet(nn.Module):
    """UPerNet without its auxiliary head (Xiao et al., 2018, "Unified perceptual parsing").

    Unlike the paper, the library's decoder first normalises the channels of each position (LayerNorm). So a
    level of one channel, or of equal channels, tells it nothing.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, width: int, dropout: float):
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError as error:
            raise DiffLensError(
                'UPerNet needs `pip install "difflens[dense]"`; --head linear does not'
            ) from error
        if min(channels) < 2:
            raise DiffLensError(
                "UPerNet normalises over channels and reads nothing of one: use --head linear"
            )
        # the decoder takes an encoder's outputs and ignores the first two
        self.decoder = UPerNetDecoder(
            (0, 0, *channels), encoder_depth=len(channels) + 1, decoder_channels=width
        )
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.decoder([levels[0], levels[0], *levels]))
        return logits


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
