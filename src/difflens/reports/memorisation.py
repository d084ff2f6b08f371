"""The section of a report that shows generated images beside their nearest training images."""

from collections.abc import Callable

from torch import Tensor

from difflens.data.images import to_float
from difflens.errors import counted
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
    """Return the section that compares samples with their nearest training images.

    Args:
        samples: (N, C, S, S) uint8.
        neighbours: by features and by pixels, from `find_nearest`.
        train: function from rows (M,) long to training images (M, C, S, S) uint8.
        searched: the images that were searched, in words, like "the 10,000 training images of X".
    """
    first = samples[:SHOWN]
    columns = [("sample", first)]
    for nearest, kind in zip(neighbours, ("features", "pixels"), strict=True):
        for rank in range(nearest.rows.shape[1]):
            title = f"by {kind}" if rank == 0 else _ORDINALS[rank]
            columns.append((title, train(nearest.rows[: len(first), rank])))
    rows: list[tuple[object, ...]] = [
        (nearest.space, *_least_and_median(nearest.samples), *_least_and_median(nearest.unseen))
        for nearest in neighbours
    ]
    unseen = neighbours[0].unseen
    text = (
        f"The nearest neighbours of the samples among {searched}. A copy is much nearer to a training image "
        "than test images are. The search does not find copies of other training images."
    )
    against = "" if unseen is None else f", and of {counted(len(unseen), 'test image')}"
    headings = ("Samples, least", "Samples, median", "Test images, least", "Test images, median")
    table = Table(
        ("Distance to the nearest training image", *headings),
        rows,
        f"Of {counted(len(samples), 'sample')}{against}. Distances compare within a row only.",
    )
    picture = Picture(
        pictures.image_columns([(title, to_float(images)) for title, images in columns]),
        f"The first {counted(len(first), 'sample')}, each with its {NEIGHBOURS} nearest training images in "
        "the backbone's features and in pixels.",
        "Generated images beside their nearest training images",
    )
    return Section(TITLE, text, (picture, table))


def _least_and_median(distances: Tensor | None) -> tuple[str | None, str | None]:
    if distances is None:
        return None, None
    return f"{distances.min():.4g}", f"{distances.median():.4g}"
