"""Alignment and uniformity of the features of places (Wang and Isola, 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.backbones.maps import Place
from difflens.data.split import ImageSplit
from difflens.extractors.base import Extractor
from difflens.extractors.cache import Reading
from difflens.metrics.geometry import alignment, uniformity

MOST_VIEWED = 500
"""The most images of which both views are read."""


@dataclass(frozen=True)
class Views:
    """Alignment and uniformity of one place.

    Attributes:
        alignment: mean squared distance of the unit vectors of an image's two views, from 0 to 4.
        uniformity: log of the mean Gaussian potential of pairs of images, from -8 to 0; lower is better.
    """

    alignment: float
    uniformity: float


def measure_views(
    reading: Reading, extractor: Extractor, split: ImageSplit, rows: Tensor
) -> Mapping[Place, Views]:
    """Return alignment and uniformity of every place; maps are averaged over positions.

    The views are the image and its mirror image. In a network that takes noise, each view has its own.

    Args:
        rows: (M,) long, M at least 2: positions in the split. Of more than `MOST_VIEWED`, so many are read,
            evenly spaced, because images are often in the order of their classes.
    """
    if len(rows) > MOST_VIEWED:
        rows = rows[torch.arange(MOST_VIEWED) * len(rows) // MOST_VIEWED]
    plain = mean_features(reading, extractor, split, rows)
    mirrored = mean_features(reading, extractor, split.mirrored(), rows, draw=1)
    return {
        place: Views(alignment(plain[place], mirrored[place]), uniformity(plain[place])) for place in plain
    }


def mean_features(
    reading: Reading, extractor: Extractor, split: ImageSplit, rows: Tensor, draw: int = 0
) -> dict[Place, Tensor]:
    """Return the maps' means over positions, (M, C) float32, by place.

    Args:
        rows: (M,) long: positions in the split.
        draw: the number of the noise sample.
    """
    parts: dict[Place, list[Tensor]] = {}
    for _, features in reading.features(extractor, split, rows, 1, torch.float32, draw=draw):
        for place, maps in features.items():
            parts.setdefault(place, []).append(maps.mean((2, 3)))
    return {place: torch.cat(vectors) for place, vectors in parts.items()}
