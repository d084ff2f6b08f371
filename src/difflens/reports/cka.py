"""The report of `difflens cka`: heat maps of similarity, and whether decoder blocks are like their mirrors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import Picture, Section, Table, render

_EXPLAINED = {
    "blocks": ("Similarity of blocks", "Each block of the network against every other at the same noise step. Red frames mark "
               "mirrors: an encoder block and the decoder block that takes its skip."),
    "noise steps": ("Similarity of noise steps", "One block at several noise steps; the noise of an image is another one "
                    "at each."),
    "poolings": ("Similarity of poolings", "One block's maps, average-pooled to different sides."),
    "models": ("Similarity of two backbones", "Each block of the one backbone against each block of the other, on the same images."),
}  # fmt: skip


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
            "cka_by_distance": {str(k): list(pair) for k, pair in self.by_distance.items()},
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


def similarity_report(
    *,
    summary: str,
    comparisons: Sequence[Comparison],
    mirrors: Mapping[int, Mirrors | None],
    largest_half_width: float,
    provenance: Mapping[str, object],
) -> str:
    """One self-contained HTML document.

    Args:
        summary: what was compared on what.
        comparisons: heat maps, those of a kind together.
        mirrors: by noise step; None for a network without pairs.
        largest_half_width: of any 95 % interval.
        provenance: rows of the closing table.
    """
    sections = []
    for kind, (title, text) in _EXPLAINED.items():
        members = [each for each in comparisons if each.kind == kind]
        if members:
            pictures = [
                Picture(
                    similarity_map(each.values, each.rows, each.columns, each.axes, each.roles, each.marks),
                    f"CKA, {each.title}.", f"Heat map of CKA, {kind}, {each.title}",
                )
                for each in members
            ]  # fmt: skip
            sections.append(Section(title, text, tuple(pictures)))
    known = {t: found for t, found in mirrors.items() if found is not None}
    if known:
        sections.insert(1, _mirror_section(known))
    sections.append(Section(
        "Uncertainty", f"The widest 95 % interval of any pair is ± {largest_half_width:.3f}; table.csv has that of "
        "every pair. It is the uncertainty from these images being a sample; it says nothing of other weights.",
    ))  # fmt: skip
    return render("Representation similarity (CKA)", summary, sections, provenance)


def _mirror_section(mirrors: Mapping[int, Mirrors]) -> Section:
    distances = sorted({k for each in mirrors.values() for k in each.by_distance})
    rows: list[tuple[object, ...]] = [
        (f"{k} block{'s' * (k != 1)} away" if k else "the mirror itself",
         *("{:.3f} ± {:.3f}".format(*each.by_distance[k]) for each in mirrors.values()))
        for k in distances
    ]  # fmt: skip
    rows.append(
        ("mirrors minus all others", *("{:+.3f} ± {:.3f}".format(*each.lead) for each in mirrors.values()))
    )
    text = "\n\n".join(f"At t = {t}: {each}." for t, each in mirrors.items())
    caption = "Mean CKA of decoder blocks with encoder blocks, by the distance from the mirror, with 95 % intervals."
    return Section(
        "Mirrors: pairs of encoder and decoder blocks",
        text,
        (Table(("Encoder block", *(f"t = {t}" for t in mirrors)), rows, caption),),
    )
