"""A feature pyramid: maps of several blocks and noise steps as levels, the finest first."""

from collections.abc import Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.base import Backbone, Block
from difflens.backbones.maps import MapShape, Place

LEVELS = 4
"""As many as UPerNet and Mask R-CNN usually read; the paper's, from ADM-256, have strides 2, 4, 8 and 16."""


class FeaturePyramid(nn.Module):
    """Levels of given strides from maps of any.

    Every channel is brought to mean 0 and variance 1 (batch normalisation), because a U-Net's maps differ in scale by
    orders of magnitude. The maps of one stride, of several blocks or noise steps, are concatenated: whatever reads a
    level fuses them. A level that no map has the stride of is pooled from the next finer one that is there, or if
    there is none upsampled from the next coarser.

    Args:
        shapes: (C, H, W) of every map for images of `side` pixels.
        side: of the images.
        strides: of the levels, ascending; None: those of the maps.

    Attributes:
        strides, channels: of the levels, the finest first.
    """

    def __init__(self, shapes: Mapping[Place, MapShape], side: int, strides: Collection[int] | None = None):
        super().__init__()
        self.places_of: dict[int, list[Place]] = {}
        for place, (_, height, _) in sorted(shapes.items()):
            self.places_of.setdefault(side // height, []).append(place)
        self.strides = tuple(sorted(strides or self.places_of))
        self.sources = {stride: _nearest(stride, self.places_of) for stride in self.strides}
        self.norms = nn.ModuleDict(
            {_name(place): nn.BatchNorm2d(channels) for place, (channels, _, _) in shapes.items()}
        )
        self.channels = tuple(
            sum(shapes[place][0] for place in self.places_of[self.sources[stride]]) for stride in self.strides
        )

    def forward(self, maps: Mapping[Place, Tensor]) -> list[Tensor]:
        """The levels, (B, channels, side / stride, side / stride) each, of maps (B, C, H, W) of images of any side."""
        found = {
            stride: torch.cat([self.norms[_name(place)](maps[place]) for place in places], dim=1)
            for stride, places in self.places_of.items()
            if stride in self.sources.values()
        }
        return [
            _resampled(found[self.sources[stride]], self.sources[stride], stride) for stride in self.strides
        ]


def usual_strides(backbone: Backbone, read: Iterable[int] = ()) -> tuple[int, ...]:
    """Strides of the pyramid on a backbone: `LEVELS` doublings from its finest, but from the second finest where it
    has more than `LEVELS`; more levels where the blocks `read` have finer or coarser maps.

    A backbone with one stride has its levels around that, from a quarter of it if it can be quartered (Li et al.,
    "Exploring plain vision transformer backbones for object detection", 2022).
    """
    there = sorted({block.stride for block in _readable(backbone)})
    finest = there[1] if len(there) > LEVELS else there[0]
    if len(there) == 1 and finest % 4 == 0:
        finest //= 4
    mine = {backbone.block(index).stride for index in read}
    finest = min({finest, *mine})
    strides = {finest * 2**k for k in range(LEVELS)} | mine
    while max(strides) > finest and 2 * finest not in strides:  # no gap up to the coarsest
        strides.add(2 * finest)
    return tuple(sorted(strides))


def usual_blocks(backbone: Backbone) -> tuple[int, ...]:
    """The last decoder block of each of the usual strides: the paper's 24, 27, 30 and 33 on ADM-256."""
    last = {block.stride: block.index for block in _readable(backbone)}
    return tuple(sorted(last[stride] for stride in usual_strides(backbone) if stride in last))


def _readable(backbone: Backbone) -> tuple[Block, ...]:
    return backbone.of_role("decoder") or backbone.blocks


def _nearest(stride: int, there: Collection[int]) -> int:
    """Of the strides `there` the one to make a level from: the coarsest that is not coarser, else the finest."""
    finer = [other for other in there if other <= stride]
    return max(finer) if finer else min(there)


def _resampled(level: Tensor, have: int, want: int) -> Tensor:
    if have == want:
        return level
    height, width = (max(1, length * have // want) for length in level.shape[-2:])
    size = (height, width)
    if want > have:
        return F.adaptive_avg_pool2d(level, size)
    return F.interpolate(level, size, mode="bilinear", align_corners=False)


def _name(place: Place) -> str:
    return f"block{place[0]}-t{place[1]}"
