"""A feature pyramid: the maps of several blocks and noise steps as levels, the finest first."""

from collections.abc import Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.base import Backbone, Block
from difflens.backbones.maps import MapShape, Place, module_name
from difflens.errors import DiffLensError
from difflens.heads.mix import Mixture

LEVELS = 4
"""The usual number of levels of UPerNet and Mask R-CNN; in the paper they have strides 2, 4, 8 and 16."""


class FeaturePyramid(nn.Module):
    """Levels of given strides from maps of any strides.

    Batch normalisation brings each channel to mean 0 and variance 1, because the maps of a U-Net differ in
    scale by orders of magnitude. Maps of the same stride, from several blocks or noise steps, are
    concatenated, and the next layer fuses them; or they are mixed, with learned weights. A stride that no map
    has is pooled from the next finer level. If there is none, it is upsampled from the next coarser level.

    Args:
        shapes: (C, H, W) of the maps for images of `side` pixels, by place.
        side: side of the square images, in pixels.
        strides: strides of the levels; None: those of the maps.
        mixed: channels of a mixture of the maps of each stride; None: they are concatenated.

    Attributes:
        strides, channels: stride and number of channels of each level, the finest first.
    """

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        side: int,
        strides: Collection[int] | None = None,
        mixed: int | None = None,
    ):
        super().__init__()
        if strides is not None and not strides:
            raise DiffLensError("strides is empty: a pyramid has at least one level")
        self.places_of: dict[int, list[Place]] = {}
        for place, (_, height, _) in sorted(shapes.items()):
            self.places_of.setdefault(side // height, []).append(place)
        self.strides = tuple(sorted(strides or self.places_of))
        self.sources = {stride: _nearest(stride, self.places_of) for stride in self.strides}
        self.norms = nn.ModuleDict(
            {module_name(place): nn.BatchNorm2d(channels) for place, (channels, _, _) in shapes.items()}
        )
        channels = {
            stride: {place: shapes[place][0] for place in self.places_of[stride]}
            for stride in sorted({*self.sources.values()})
        }
        self.mixtures = nn.ModuleDict(
            {} if mixed is None else {str(stride): Mixture(each, mixed) for stride, each in channels.items()}
        )
        self.channels = tuple(
            mixed or sum(channels[self.sources[stride]].values()) for stride in self.strides
        )

    def forward(self, maps: Mapping[Place, Tensor]) -> list[Tensor]:
        """Return the levels, (B, channels, side / stride, side / stride) each, the finest first.

        Args:
            maps: (B, C, H, W) by place, of images of any side.
        """
        sources = {stride: self._source(maps, stride) for stride in sorted({*self.sources.values()})}
        return [
            _resampled(sources[self.sources[stride]], self.sources[stride], stride) for stride in self.strides
        ]

    def _source(self, maps: Mapping[Place, Tensor], stride: int) -> Tensor:
        """Return the normalised maps of a stride, concatenated or mixed, (B, channels, H, W)."""
        normed = {place: self.norms[module_name(place)](maps[place]) for place in self.places_of[stride]}
        if str(stride) in self.mixtures:
            return self.mixtures[str(stride)](normed)
        return torch.cat(list(normed.values()), dim=1)


def usual_strides(backbone: Backbone, read: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the default strides of the pyramid on a backbone, ascending.

    They are `LEVELS` doublings of the backbone's finest stride. A backbone with more than `LEVELS` strides
    starts at its second finest. A backbone with a single stride, divisible by 4, starts at a quarter of it
    (Li et al., "Exploring plain vision transformer backbones for object detection", 2022).

    Args:
        read: block indices. Their strides are included, and so are the doublings between.
    """
    available = sorted({block.stride for block in _readable(backbone)})
    finest = available[1] if len(available) > LEVELS else available[0]
    if len(available) == 1 and finest % 4 == 0:
        finest //= 4
    included = {backbone.block(index).stride for index in read}
    finest = min({finest, *included})
    levels = LEVELS
    while finest * 2 ** (levels - 1) < max(included, default=0):
        levels += 1
    return tuple(sorted({finest * 2**k for k in range(levels)} | included))


def usual_blocks(backbone: Backbone) -> tuple[int, ...]:
    """Return the last decoder block of each usual stride: the paper's 24, 27, 30 and 33 on ADM-256."""
    last = {block.stride: block.index for block in _readable(backbone)}
    return tuple(sorted(last[stride] for stride in usual_strides(backbone) if stride in last))


def _readable(backbone: Backbone) -> tuple[Block, ...]:
    return backbone.of_role("decoder") or backbone.blocks


def _nearest(stride: int, available: Collection[int]) -> int:
    """Return the available stride to make a level from: the coarsest up to `stride`, else the finest."""
    finer = [other for other in available if other <= stride]
    return max(finer) if finer else min(available)


def _resampled(level: Tensor, source: int, target: int) -> Tensor:
    """Return a level of stride `source`, (B, C, H, W), pooled or upsampled to the stride `target`."""
    if source == target:
        return level
    height, width = (max(1, length * source // target) for length in level.shape[-2:])
    size = (height, width)
    if target > source:
        return F.adaptive_avg_pool2d(level, size)
    return F.interpolate(level, size, mode="bilinear", align_corners=False)
