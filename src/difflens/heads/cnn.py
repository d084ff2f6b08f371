"""The convolutional head (predecessor of the paper, arXiv 2307.08702, section 3)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place, pool_to
from difflens.heads.base import Head


class CNNHead(Head):
    """3x3 convolutions with batch normalisation and ReLU, global average pooling, one linear layer.

    Several maps are pooled to the smallest height and width among them and concatenated by channel.

    Args:
        shapes: (C, H, W) of the maps, by place.
        num_classes: number of logits.
        pool: the side that larger maps are pooled to.
        widths: channels after each convolution; all convolutions but the first halve the side.
    """

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        num_classes: int,
        pool: int | None = 16,
        widths: tuple[int, ...] = (512, 1024),
    ):
        super().__init__()
        sides = [max(shape[1:]) for shape in shapes.values()]
        self.pool = min(sides) if pool is None else min(pool, *sides)
        self.places = sorted(shapes)
        before = sum(channels for channels, _, _ in shapes.values())
        layers: list[nn.Module] = []
        for number, width in enumerate(widths):
            stride = 1 if number == 0 else 2
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        pooled = [pool_to(features[place].float(), self.pool) for place in self.places]
        size = min(each.shape[-2] for each in pooled), min(each.shape[-1] for each in pooled)
        maps = torch.cat(
            [each if each.shape[-2:] == size else F.adaptive_avg_pool2d(each, size) for each in pooled], dim=1
        )
        return self.classifier(self.convolutions(maps).mean(dim=(2, 3)))
