"""The result of `difflens cka`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from difflens.errors import counted
from difflens.processes.base import Level, in_words
from difflens.results.base import Result, plain, skipped, without_nan


@dataclass(frozen=True, order=True)
class Representation:
    """The feature maps of one block at one noise step, pooled to one side.

    Attributes:
        model: 0 for the backbone, 1 for the other backbone.
        block, noise_step: the place.
        side: side of the pooled maps; 0 for maps that are not pooled.
    """

    model: int
    block: int
    noise_step: Level
    side: int


@dataclass(frozen=True)
class Comparison:
    """The CKA values of one heat map.

    Attributes:
        kind: "blocks", "noise steps", "poolings" or "models".
        name: name of its file without ending, and its key in metrics.json.
        title: the block or noise step that all its values share.
        values: (R, C) CKA in [-1, 1].
        cknna: (R, C) CKNNA in [-1, 1].
        rows, columns: R and C names.
        axes: titles of the rows and of the columns.
        roles: the part of the network of each row and column; empty where they are not blocks.
        marks: (row, column) of cells to frame.
    """

    kind: str
    name: str
    title: str
    values: Tensor
    cknna: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[str, str]
    roles: tuple[Sequence[str], Sequence[str]] = ((), ())
    marks: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class PlaceGeometry:
    """Measures of the features of one place alone; maps are averaged over positions.

    Attributes:
        model: 0 for the backbone, 1 for the other backbone.
        block, noise_step: the place.
        rank: effective rank (RankMe, Garrido et al., 2023), from 1 to `channels`; NaN where all maps are 0.
        channels: number of channels.
        alignment: mean squared distance of the unit vectors of an image and its mirror image, each with noise
            of its own, from 0 to 4 (Wang and Isola, 2020).
        uniformity: logarithm of the mean Gaussian potential of pairs of images, from -8, the best, to 0 (Wang
            and Isola, 2020).
    """

    model: int
    block: int
    noise_step: Level
    rank: float
    channels: int
    alignment: float
    uniformity: float


@dataclass(frozen=True)
class Mirrors:
    """The similarity of decoder blocks to their mirrors, the encoder blocks whose skips they take.

    Attributes:
        by_distance: mean CKA and the half-width of its 95 % interval, by the distance of an encoder block
            from the mirror in blocks.
        lead: mean CKA of the mirrors minus that of all other pairs, and the half-width of its 95 % interval.
        decoder_blocks: number of decoder blocks that were compared.
        nearest: number of decoder blocks whose most similar encoder block is their mirror.
        nearly: number of decoder blocks whose most similar encoder block is their mirror or next to it.
    """

    by_distance: Mapping[int, tuple[float, float]]
    lead: tuple[float, float]
    decoder_blocks: int
    nearest: int
    nearly: int

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json; None where features do not vary."""
        return {
            "cka_by_distance": without_nan(self.by_distance),
            "lead_of_mirrors": without_nan(self.lead),
            "decoder_blocks": self.decoder_blocks,
            "nearest_is_mirror": self.nearest,
            "nearest_is_mirror_or_next": self.nearly,
        }

    def __str__(self) -> str:
        mean, _ = self.by_distance.get(0, (float("nan"), 0.0))
        lead, half = self.lead
        return (
            f"CKA of a decoder block with its mirror is {mean:.2f} on average, {lead:+.3f} ± {half:.3f} "
            "relative to all other encoder blocks. The mirror is the most similar encoder block for "
            f"{self.nearest} of {counted(self.decoder_blocks, 'decoder block')}. For "
            f"{self.nearly}, the most similar one is the mirror or a block next to it"
        )


@dataclass(frozen=True, kw_only=True)
class CkaResult(Result):
    """The result of `cka`.

    Attributes:
        out: the run directory.
        representations: the P representations.
        values: (P, P) CKA of every pair, in [-1, 1]; NaN where features do not vary.
        half_widths: (P, P) half-widths of their 95 % intervals.
        cknna, cknna_half_widths: the same of CKNNA, the alignment of nearest neighbours (Huh et al., 2024).
        neighbours: number of nearest neighbours of an image, within its minibatch.
        geometry: one for each place.
        images, minibatches: how many were read.
        blocks, noise_steps: the places of the backbone that were compared, from the least to the most noise.
        log_snr: natural logarithm of signal^2 / noise^2 at these noise steps; None where it is infinite.
        pool: the sides that its maps were pooled to; 0 for maps that are not pooled.
        mirrors: by noise step; None for a network without pairs of encoder and decoder blocks.
        comparisons: the heat maps.
        skipped_images: a line for each image that could not be read.
    """

    out: Path
    representations: tuple[Representation, ...]
    values: Tensor
    half_widths: Tensor
    cknna: Tensor
    cknna_half_widths: Tensor
    neighbours: int
    geometry: tuple[PlaceGeometry, ...]
    images: int
    minibatches: int
    blocks: tuple[int, ...]
    noise_steps: tuple[Level, ...]
    log_snr: tuple[float | None, ...]
    pool: tuple[int, ...]
    mirrors: Mapping[Level, Mirrors | None]
    comparisons: tuple[Comparison, ...]
    skipped_images: tuple[str, ...]

    @property
    def largest_half_width(self) -> float:
        """Half the width of the widest 95 % interval."""
        return float(self.half_widths.nan_to_num(0).max())

    def between(
        self, rows: Sequence[Representation], columns: Sequence[Representation]
    ) -> tuple[Tensor, Tensor]:
        """Return CKA and CKNNA of the given representations, (rows, columns) each."""
        index = {representation: number for number, representation in enumerate(self.representations)}
        down, across = [index[row] for row in rows], [index[column] for column in columns]
        return self.values[down][:, across], self.cknna[down][:, across]

    def metrics(self) -> dict[str, Any]:
        """Plain values for metrics.json; None where features do not vary."""
        return {
            "images": self.images,
            "minibatches": self.minibatches,
            "blocks": plain(self.blocks),
            "noise_steps": plain(self.noise_steps),
            "log_snr": plain(self.log_snr),
            "pool": plain(self.pool),
            "mirrors": {
                str(t): mirrors.metrics() for t, mirrors in self.mirrors.items() if mirrors is not None
            },
            "cka": {comparison.name: without_nan(comparison.values) for comparison in self.comparisons},
            "cknna": {comparison.name: without_nan(comparison.cknna) for comparison in self.comparisons},
            "neighbours": self.neighbours,
            "geometry": without_nan(self.geometry),
            "largest_half_width_95": self.largest_half_width,
            "skipped_images": plain(self.skipped_images),
        }

    def summary(self) -> str:
        lines = [
            f"{counted(self.images, 'image')} in {counted(self.minibatches, 'minibatch')}; the widest 95 % "
            "interval is "
            f"± {self.largest_half_width:.3f}"
        ]
        for t, log_snr in zip(self.noise_steps, self.log_snr, strict=True):
            mirrors = self.mirrors[t]
            if mirrors is not None:
                lead, half = mirrors.lead
                lines.append(
                    f"t = {in_words({t: log_snr})}: decoder blocks are {lead:+.3f} ± {half:.3f} more like "
                    f"their mirrors than like other encoder blocks; {mirrors.nearest} of "
                    f"{mirrors.decoder_blocks} are most like their mirror"
                )
        lines.append(f"Report: {self.out / 'report.html'}, every pair: {self.out / 'table.csv'}")
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
