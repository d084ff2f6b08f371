"""Memorisation check: distances of generated and of test images to their nearest training images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.metrics.distances import Nearest

SHOWN = 8
"""The number of samples in the picture."""

NEIGHBOURS = 2
"""The number of nearest training images of a sample, in each space."""

UNSEEN = 200
"""The largest number of test images that the samples are compared with."""

Seen = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, S, S) uint8, their features (B, D), their rows (B,) long."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images in one space.

    Attributes:
        space: a description of the space.
        rows: (N, k) long, rows of the nearest training images of each sample, the nearest first.
        samples: (N,) distance of each sample to its nearest training image.
        unseen: (M,) distance of each test image to its nearest training image; None without test images.
    """

    space: str
    rows: Tensor
    samples: Tensor
    unseen: Tensor | None


def find_nearest(
    samples: Seen, train: Iterable[Seen], test: Iterable[Seen] | None, features: str
) -> tuple[Neighbours, Neighbours]:
    """Return the nearest training images of samples, by features and by pixels.

    Distances between features are Euclidean. Distances between pixels are root mean square, in grey levels.

    Args:
        samples: one image or more.
        train: batches of the training images, which are read once.
        test: batches of test images, of which at most `UNSEEN` are read; None: no comparison.
        features: a description of the feature space.
    """
    count = len(samples[0])
    unseen: list[Seen] = []
    for seen in test or ():
        unseen.append(seen)
        if sum(len(images) for images, *_ in unseen) >= UNSEEN:
            break
    images = torch.cat([samples[0].cpu(), *(seen[0].cpu() for seen in unseen)])[: count + UNSEEN]
    vectors = torch.cat([samples[1].cpu(), *(seen[1].cpu() for seen in unseen)])[: count + UNSEEN]
    by_features, by_pixels = Nearest(vectors, NEIGHBOURS), Nearest(_levels(images), NEIGHBOURS)
    for images, vectors, rows in train:
        by_features.add(vectors, rows)
        by_pixels.add(_levels(images), rows)

    def neighbours(space: str, nearest: Nearest) -> Neighbours:
        distances = nearest.distances[:, 0]
        return Neighbours(
            space, nearest.rows[:count], distances[:count], distances[count:] if unseen else None
        )

    return neighbours(features, by_features), neighbours("pixels, grey levels", by_pixels)


def _levels(images: Tensor) -> Tensor:
    """Return images as vectors whose Euclidean distance is the root mean square difference in grey levels."""
    pixels = images.flatten(1).float()
    return pixels / pixels.shape[1] ** 0.5
