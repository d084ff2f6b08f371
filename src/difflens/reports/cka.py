"""The report of `difflens cka`: heat maps of similarity, and the similarity of mirrors."""

from collections.abc import Mapping, Sequence

from difflens.processes.base import Level, bracketed, in_words
from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.cka import Comparison, Mirrors

_EXPLAINED = {
    "blocks": (
        "Similarity of blocks",
        "Each block of the network is compared with every other block at the same noise step. Red frames "
        "mark mirrors: an encoder block and the decoder block that takes its skip.",
    ),
    "noise steps": (
        "Similarity of noise steps",
        "Each heat map compares one block with itself at other noise steps. Each noise step adds its own "
        "noise.",
    ),
    "poolings": (
        "Similarity of poolings",
        "Each heat map compares the feature maps of one block, average-pooled to different sides.",
    ),
    "models": (
        "Similarity of two backbones",
        "Each block of one backbone is compared with each block of the other on the same images.",
    ),
}


def similarity_report(
    *,
    summary: str,
    comparisons: Sequence[Comparison],
    mirrors: Mapping[Level, Mirrors | None],
    log_snr: Mapping[Level, float],
    largest_half_width: float,
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        summary: the backbones and images, in a sentence.
        comparisons: the heat maps.
        mirrors: by noise step; None for a network without pairs of encoder and decoder blocks.
        log_snr: by noise step.
        largest_half_width: half the width of the widest 95 % interval.
        provenance: rows of the closing table.
    """
    sections = []
    for kind, (title, text) in _EXPLAINED.items():
        pictures = [_picture(comparison) for comparison in comparisons if comparison.kind == kind]
        if pictures:
            sections.append(Section(title, text, tuple(pictures)))
    measured = {t: similarity for t, similarity in mirrors.items() if similarity is not None}
    if measured:
        sections.insert(1, _mirror_section(measured, log_snr))
    text = (
        f"The widest 95 % interval of any pair is ± {largest_half_width:.3f}; table.csv has the interval of "
        "every pair. The intervals describe other samples of images, not networks with other weights."
    )
    sections.append(Section("Uncertainty", text))
    return render("Representation similarity (CKA)", summary, sections, provenance)


def _picture(comparison: Comparison) -> Picture:
    figure = similarity_map(
        comparison.values,
        comparison.rows,
        comparison.columns,
        comparison.axes,
        comparison.roles,
        comparison.marks,
    )
    alt = f"Heat map of CKA, {comparison.kind}, {comparison.title}"
    return Picture(figure, f"CKA, {comparison.title}.", alt)


def _mirror_section(mirrors: Mapping[Level, Mirrors], log_snr: Mapping[Level, float]) -> Section:
    values = mirrors.values()
    rows: list[tuple[object, ...]] = []
    for k in sorted({k for similarity in values for k in similarity.by_distance}):
        name = f"{k} block{'s' * (k != 1)} away" if k else "the mirror itself"
        rows.append((name, *("{:.3f} ± {:.3f}".format(*similarity.by_distance[k]) for similarity in values)))
    leads = ("{:+.3f} ± {:.3f}".format(*similarity.lead) for similarity in values)
    rows.append(("mirrors minus all others", *leads))
    text = "\n\n".join(
        f"At t = {in_words({t: log_snr[t]})}: {similarity}." for t, similarity in mirrors.items()
    )
    caption = (
        "Mean CKA of decoder and encoder blocks, by the distance from the mirror, with 95 % intervals. The "
        "log-SNR of a noise step is in brackets."
    )
    table = Table(("Encoder block", *(f"t = {bracketed(t, log_snr[t])}" for t in mirrors)), rows, caption)
    return Section("Mirrors: pairs of encoder and decoder blocks", text, (table,))
