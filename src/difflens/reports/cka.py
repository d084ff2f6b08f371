"""The report of `difflens cka`: heat maps of similarity, and the similarity of mirrors."""

from collections.abc import Mapping, Sequence

from difflens.processes.base import Level, bracketed, in_words
from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.cka import Comparison, EffectiveRank, Mirrors

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
    effective_ranks: Sequence[EffectiveRank],
    backbones: Sequence[str],
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        summary: the backbones and images, in a sentence.
        comparisons: the heat maps.
        mirrors: by noise step; None for a network without pairs of encoder and decoder blocks.
        log_snr: by noise step.
        largest_half_width: half the width of the widest 95 % interval of CKA.
        effective_ranks: one for each place.
        backbones: names of the backbones, in the order of the places' models.
        provenance: rows of the closing table.
    """
    sections = []
    for kind, (title, text) in _EXPLAINED.items():
        chosen = [comparison for comparison in comparisons if comparison.kind == kind]
        pictures = [picture for comparison in chosen for picture in _pictures(comparison)]
        if pictures:
            sections.append(Section(title, text, tuple(pictures)))
    measured = {t: similarity for t, similarity in mirrors.items() if similarity is not None}
    if measured:
        sections.insert(1, _mirror_section(measured, log_snr))
    sections.append(_rank_section(effective_ranks, backbones))
    text = (
        f"The widest 95 % interval of any pair's CKA is ± {largest_half_width:.3f}; table.csv has those of "
        "every pair. The intervals describe other samples of images, not networks with other weights."
    )
    sections.append(Section("Uncertainty", text))
    return render("Representation similarity (CKA)", summary, sections, provenance)


def _pictures(comparison: Comparison) -> list[Picture]:
    """Return the heat map of CKA, and beside it that of CKNNA."""
    pictures = []
    for measure, values in (("CKA", comparison.values), ("CKNNA", comparison.cknna)):
        figure = similarity_map(
            values,
            comparison.rows,
            comparison.columns,
            comparison.axes,
            comparison.roles,
            comparison.marks,
            measure,
        )
        alt = f"Heat map of {measure}, {comparison.kind}, {comparison.title}"
        pictures.append(Picture(figure, f"{measure}, {comparison.title}.", alt))
    return pictures


def _rank_section(ranks: Sequence[EffectiveRank], backbones: Sequence[str]) -> Section:
    steps = list(dict.fromkeys((rank.model, rank.noise_step) for rank in ranks))
    found = {(rank.model, rank.block, rank.noise_step): rank for rank in ranks}
    tables = []
    for model, name in enumerate(backbones):
        levels = [t for owner, t in steps if owner == model]
        rows: list[tuple[object, ...]] = []
        for block in dict.fromkeys(rank.block for rank in ranks if rank.model == model):
            places = [found[model, block, t] for t in levels]
            rows.append((f"block {block}", places[0].channels, *(f"{place.rank:.1f}" for place in places)))
        tables.append(Table(("Block", "Channels", *(f"t = {t}" for t in levels)), rows, f"{name}."))
    text = (
        "The effective rank (RankMe) of each place: how many directions its features use, from 1 to the "
        "number of channels. Maps are averaged over positions. It cannot exceed the number of images."
    )
    return Section("Effective rank", text, tuple(tables))


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
