"""Are generated images copies? Their nearest training images, next to how near images that nobody trained on come."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from difflens.analysis import pictures
from difflens.analysis.distances import Nearest
from difflens.analysis.report import Picture, Section, Table
from difflens.data.images import to_float

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


def copying_section(
    samples: Tensor,
    neighbours: tuple[Neighbours, Neighbours],
    train: Callable[[Tensor], Tensor],
    searched: str,
) -> Section:
    """The report's section on whether the samples are copies.

    Args:
        samples: uint8, (N, C, S, S).
        neighbours: by features and by pixels, from `find_nearest`.
        train: rows (M,) long to training images, uint8 (M, C, S, S).
        searched: which images were searched, in words, as "the 10,000 training images of X".
    """
    shown = samples[:SHOWN]
    columns = [("sample", shown)]
    for found, kind in zip(neighbours, ("features", "pixels"), strict=True):
        for place in range(found.rows.shape[1]):
            title = f"by {kind}" if place == 0 else f"{_ORDINALS[place]}"
            columns.append((title, train(found.rows[: len(shown), place])))
    rows: list[tuple[object, ...]] = [
        (
            found.space, f"{found.samples.min():.4g}", f"{found.samples.median():.4g}",
            None if found.unseen is None else f"{found.unseen.min():.4g}",
            None if found.unseen is None else f"{found.unseen.median():.4g}",
        )
        for found in neighbours
    ]  # fmt: skip
    compared = neighbours[0].unseen
    text = (
        f"Each sample's nearest of {searched}. A copy would be much nearer to a training image than images are that no "
        "training saw; a copy of a training image that is not among these would not be found."
    )
    against = "" if compared is None else f", and of {len(compared)} test images"
    table = Table(
        ("Distance to the nearest training image", "Samples, least", "Samples, median", "Test images, least",
         "Test images, median"),
        rows, f"Of {len(samples)} samples{against}. Distances compare within a row only.",
    )  # fmt: skip
    picture = Picture(
        pictures.image_columns([(title, to_float(images)) for title, images in columns]),
        f"The first {len(shown)} samples, each with its {NEIGHBOURS} nearest training images in the backbone's features and "
        "in pixels.",
        "Generated images beside their nearest training images",
    )
    return Section("Is it copying?", text, (picture, table))


_ORDINALS = ("", "second", "third")
