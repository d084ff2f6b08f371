"""Are generated images copies of training images? Nearest training images, judged by test images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.metrics.distances import Nearest

SHOWN = 8
"""Samples in the picture."""


NEIGHBOURS = 2
"""Nearest images shown of each, in each space."""


UNSEEN = 200
"""Test images at most that the samples are compared with."""


Seen = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, S, S) uint8, their features (B, D), their rows (B,) long."""


@dataclass(frozen=True)
class Neighbours:
    """What is nearest in one space.

    Attributes:
        space: in words.
        rows: (N, k) of each sample's nearest training images, the nearest first.
        samples: (N,) distance of each sample to its nearest training image.
        unseen: (M,) likewise of test images; None without any.
    """

    space: str
    rows: Tensor
    samples: Tensor
    unseen: Tensor | None


def find_nearest(
    samples: Seen, train: Iterable[Seen], test: Iterable[Seen] | None, features: str
) -> tuple[Neighbours, Neighbours]:
    """The nearest training images of samples by features and by pixels; the training images are seen once.

    Distances are Euclidean: between features as they are, between pixels as the root of the mean square, in grey levels.

    Args:
        samples: at least one.
        test: what the samples are compared with, at most `UNSEEN` of them are taken; None: nothing.
        features: what the features are, in words.
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
    for found, vectors, rows in train:
        by_features.add(vectors, rows)
        by_pixels.add(_levels(found), rows)
    first, second = (
        Neighbours(
            space, nearest.rows[:count], nearest.distances[:count, 0], nearest.distances[count:, 0] if unseen else None
        )
        for space, nearest in ((features, by_features), ("pixels, grey levels", by_pixels))
    )  # fmt: skip
    return first, second


def _levels(images: Tensor) -> Tensor:
    """Images as vectors whose Euclidean distance is the root mean square difference, in grey levels of 0 to 255."""
    pixels = images.flatten(1).float()
    return pixels / pixels.shape[1] ** 0.5
