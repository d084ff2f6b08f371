"""The result of `difflens cka`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from difflens.results.base import Result, plain, skipped


@dataclass(frozen=True, order=True)
class Representation:
    """What one block says of images at one noise step.

    Attributes:
        model: 0 for the backbone, 1 for the other one.
        block, noise_step: where it is read.
        side: that its maps are pooled to; 0 for none.
    """

    model: int
    block: int
    noise_step: int
    side: int


@dataclass(frozen=True)
class Comparison:
    """One heat map.

    Attributes:
        kind: "blocks", "noise steps", "poolings" or "models".
        name: of its file, and in metrics.json.
        title: what is fixed in it.
        values: CKA (R, C).
        rows, columns: their R and C names.
        axes: what rows and columns are.
        roles: the part of the network of each row and column; empty if they are no blocks.
        marks: (row, column) of cells to frame.
    """

    kind: str
    name: str
    title: str
    values: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[str, str]
    roles: tuple[Sequence[str], Sequence[str]]
    marks: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Mirrors:
    """Whether decoder blocks are like their mirrors, the encoder blocks whose skips they take.

    Attributes:
        by_distance: by how many blocks an encoder block is away from the mirror, mean CKA and the half-width of its
            95 % interval.
        lead: mean CKA of the mirrors minus that of all other pairs, and its half-width.
        decoder_blocks: how many were compared.
        nearest: of how many the mirror is the most similar encoder block.
        nearly: of how many the most similar one is the mirror or next to it.
    """

    by_distance: Mapping[int, tuple[float, float]]
    lead: tuple[float, float]
    decoder_blocks: int
    nearest: int
    nearly: int

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "cka_by_distance": plain(self.by_distance),
            "lead_of_mirrors": list(self.lead),
            "decoder_blocks": self.decoder_blocks,
            "nearest_is_mirror": self.nearest,
            "nearest_is_mirror_or_next": self.nearly,
        }

    def __str__(self) -> str:
        mean, _ = self.by_distance.get(0, (float("nan"), 0.0))
        return (
            f"CKA of a decoder block with its mirror is {mean:.2f} on average, {self.lead[0]:+.3f} ± {self.lead[1]:.3f} "
            f"against all other encoder blocks; of {self.decoder_blocks} decoder blocks, {self.nearest} are most like "
            f"their mirror, {self.nearly} most like it or a block next to it"
        )


@dataclass(frozen=True, kw_only=True)
class CkaResult(Result):
    """What `cka` returns.

    Attributes:
        out: the run directory.
        representations: P of them.
        values: CKA of every pair, (P, P) in [-1, 1]; NaN where features do not vary.
        half_widths: of the 95 % intervals around them, (P, P).
        images, minibatches: that were read.
        blocks, noise_steps, pool: of the backbone, and the sides that its maps were pooled to.
        mirrors: by noise step; None for a network without pairs of encoder and decoder blocks.
        comparisons: the heat maps.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    representations: tuple[Representation, ...]
    values: Tensor
    half_widths: Tensor
    images: int
    minibatches: int
    blocks: tuple[int, ...]
    noise_steps: tuple[int, ...]
    pool: tuple[int, ...]
    mirrors: Mapping[int, Mirrors | None]
    comparisons: tuple[Comparison, ...]
    skipped_images: tuple[str, ...]

    @property
    def largest_half_width(self) -> float:
        """Half the width of the widest 95 % interval."""
        return float(self.half_widths.nan_to_num(0).max())

    def between(self, rows: Sequence[Representation], columns: Sequence[Representation]) -> Tensor:
        """CKA of the given representations, (rows, columns)."""
        place = {each: number for number, each in enumerate(self.representations)}
        return self.values[[place[each] for each in rows]][:, [place[each] for each in columns]]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "images": self.images,
            "minibatches": self.minibatches,
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "pool": plain(self.pool),
            "mirrors": {str(t): each.metrics() for t, each in self.mirrors.items() if each is not None},
            "cka": {each.name: plain(each.values) for each in self.comparisons},
            "largest_half_width_95": self.largest_half_width,
            "skipped_images": plain(self.skipped_images),
        }

    def summary(self) -> str:
        lines = [
            f"{self.images:,} images in {self.minibatches} minibatches; the widest 95 % interval is "
            f"± {self.largest_half_width:.3f}"
        ]
        for t, each in self.mirrors.items():
            if each is not None:
                lead, half = each.lead
                lines.append(
                    f"t = {t}: decoder blocks are {lead:+.3f} ± {half:.3f} more like their mirrors than like other "
                    f"encoder blocks; {each.nearest} of {each.decoder_blocks} are most like their mirror"
                )
        lines.append(f"Report: {self.out / 'report.html'}, every pair: {self.out / 'table.csv'}")
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
