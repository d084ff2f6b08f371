"""The report of `difflens cka`: heat maps of similarity, and whether decoder blocks are like their mirrors."""

from collections.abc import Mapping, Sequence

from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.cka import Comparison, Mirrors

_EXPLAINED = {
    "blocks": ("Similarity of blocks", "Each block of the network against every other at the same noise step. Red frames mark "
               "mirrors: an encoder block and the decoder block that takes its skip."),
    "noise steps": ("Similarity of noise steps", "One block at several noise steps; the noise of an image is another one "
                    "at each."),
    "poolings": ("Similarity of poolings", "One block's maps, average-pooled to different sides."),
    "models": ("Similarity of two backbones", "Each block of the one backbone against each block of the other, on the same images."),
}  # fmt: skip


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
