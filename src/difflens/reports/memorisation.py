"""The section of a report that shows generated images beside their nearest training images."""

from collections.abc import Callable

from torch import Tensor

from difflens.data.images import to_float
from difflens.metrics.memorisation import NEIGHBOURS, SHOWN, Neighbours
from difflens.reports import pictures
from difflens.reports.html import Picture, Section, Table

TITLE = "Memorisation check"
_ORDINALS = ("", "second", "third")


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
    return Section(TITLE, text, (picture, table))
