"""The results of `difflens match`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from difflens.processes.base import Level
from difflens.results.base import Result, plain
from difflens.run.console import table_text

_ROWS = 20  # the most points in the table on the terminal

Point = tuple[float, float]
"""x, y in pixels of a picture: whole numbers are the centres of pixels."""


@dataclass(frozen=True)
class MatchedPoint:
    """A point of the first picture, and the position of the second that is most similar.

    Attributes:
        point, match: in pixels of their pictures.
        score: cosine of the two feature vectors, in [-1, 1].
        returned: where the match matches back to, in the first picture.
        mutual: True if that is within one cell of the feature map.
    """

    point: Point
    match: Point
    score: float
    returned: Point
    mutual: bool


@dataclass(frozen=True, kw_only=True)
class MatchResult(Result):
    """The result of `match` on two pictures.

    Attributes:
        out: the run directory.
        pictures: the two files.
        sizes: (width, height) of each, in pixels.
        block, noise_step: the place that was read.
        matches: by point, in the order of the points.
    """

    out: Path
    pictures: tuple[str, str]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    block: int
    noise_step: Level
    matches: tuple[MatchedPoint, ...]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "pictures": plain(self.pictures),
            "sizes": plain(self.sizes),
            "block": self.block,
            "noise_step": self.noise_step,
            "matches": plain(self.matches),
        }

    def summary(self) -> str:
        table = Table("point", "match", "cosine", "matches back")
        for each in self.matches[:_ROWS]:
            (x, y), (u, v) = each.point, each.match
            back = "yes" if each.mutual else "no"
            table.add_row(f"{round(x)}, {round(y)}", f"{round(u)}, {round(v)}", f"{each.score:.3f}", back)
        more = len(self.matches) - _ROWS
        rest = f"\n{more} more in metrics.json" if more > 0 else ""
        files = f"Picture: {self.out / 'match.png'}, points: {self.out / 'metrics.json'}"
        return f"{table_text(table)}{rest}\n{files}"


@dataclass(frozen=True)
class KeypointScore:
    """Percentage of correct keypoints (PCK) of some pairs, as shares in [0, 1].

    Attributes:
        pairs, points: their numbers.
        box, image: share of all points within alpha of the longer side of the object's box, or of the
            picture.
        box_by_pair, image_by_pair: the same shares within each pair, averaged over the pairs.
    """

    pairs: int
    points: int
    box: float
    image: float
    box_by_pair: float
    image_by_pair: float


@dataclass(frozen=True, kw_only=True)
class KeypointResult(Result):
    """The result of `match --data`.

    Attributes:
        out: the run directory.
        alpha: share of the longer side within which a point is correct.
        block, noise_step: the place that was read.
        overall: of all pairs.
        classes: of the pairs of each class.
    """

    out: Path
    alpha: float
    block: int
    noise_step: Level
    overall: KeypointScore
    classes: Mapping[str, KeypointScore]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "alpha": self.alpha,
            "block": self.block,
            "noise_step": self.noise_step,
            "overall": plain(self.overall),
            "classes": plain(self.classes),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of a table, one line a class and one for all: shares in per cent."""
        return [
            (
                name,
                f"{score.pairs:,}",
                f"{score.points:,}",
                *(f"{100 * share:.1f}" for share in (score.box, score.box_by_pair)),
                *(f"{100 * share:.1f}" for share in (score.image, score.image_by_pair)),
            )
            for name, score in (*self.classes.items(), ("all", self.overall))
        ]

    def summary(self) -> str:
        table = Table("class", "pairs", "points", "box", "by pair", "image", "by pair")
        for row in self.rows():
            table.add_row(*row)
        head = f"PCK@{self.alpha:g} in per cent, of the object's box and of the image"
        return f"{head}\n{table_text(table)}\nReport: {self.out / 'report.html'}"
