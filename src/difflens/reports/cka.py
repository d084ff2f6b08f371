"""The report of `difflens cka`: heat maps of similarity, and the similarity of mirrors."""

from collections.abc import Callable, Mapping, Sequence

import torch

from difflens.errors import counted
from difflens.processes.base import Level, bracketed, in_words
from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import Picture, Section, Table, render
from difflens.results.cka import Comparison, Mirrors, PlaceGeometry

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
    geometry: Sequence[PlaceGeometry],
    backbones: Sequence[str],
    viewed: int,
    provenance: Mapping[str, object],
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        summary: the backbones and images, in a sentence.
        comparisons: the heat maps.
        mirrors: by noise step; None for a network without pairs of encoder and decoder blocks.
        log_snr: by noise step.
        largest_half_width: half the width of the widest 95 % interval of CKA.
        geometry: one for each place.
        backbones: names of the backbones, in the order of the places' models.
        viewed: number of images that measured alignment and uniformity.
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
    sections.append(_geometry_section(geometry, backbones, viewed))
    text = (
        f"The widest 95 % interval of any pair's CKA is ± {largest_half_width:.3f}; table.csv has those of "
        "every pair. The intervals describe other samples of images, not networks with other weights."
    )
    sections.append(Section("Uncertainty", text))
    return render("Representation similarity (CKA)", summary, sections, provenance)


def _pictures(comparison: Comparison) -> list[Picture]:
    """Return the heat map of CKA, and beside it that of CKNNA if it differs."""
    measures = {"CKA": comparison.values, "CKNNA": comparison.cknna}
    if torch.allclose(comparison.values, comparison.cknna, rtol=0, atol=1e-9, equal_nan=True):
        del measures["CKNNA"]  # all other images of a minibatch are neighbours
    pictures = []
    for measure, values in measures.items():
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
        pictures.append(Picture(figure, f"{comparison.title}: {measure}.", alt))
    return pictures


def _geometry_section(geometry: Sequence[PlaceGeometry], backbones: Sequence[str], viewed: int) -> Section:
    measures: dict[str, Callable[[PlaceGeometry], str]] = {
        "effective rank": lambda place: f"{place.rank:.1f}",
        "alignment": lambda place: f"{place.alignment:.3f}",
        "uniformity": lambda place: f"{place.uniformity:.3f}",
    }
    found = {(place.model, place.block, place.noise_step): place for place in geometry}
    tables = []
    for model, name in enumerate(backbones):
        blocks = dict.fromkeys(place.block for place in geometry if place.model == model)
        levels = dict.fromkeys(place.noise_step for place in geometry if place.model == model)
        for measure, text in measures.items():
            rows: list[tuple[object, ...]] = []
            for block in blocks:
                places = [found[model, block, t] for t in levels]
                rows.append((f"block {block}", places[0].channels, *map(text, places)))
            columns = ("Block", "Channels", *(f"t = {t}" for t in levels))
            tables.append(Table(columns, rows, f"{name}: {measure}."))
    explained = (
        "Measures of each place alone; maps are averaged over positions. The effective rank (RankMe) says "
        "how many directions features use, from 1 to the number of channels. It cannot exceed the number of "
        "images. Alignment is the mean squared distance of an image and its mirror image, each with noise "
        "of its own, as unit vectors: 0 is best. Uniformity is lower, down to -8, the more evenly images are "
        f"spread over the sphere. {counted(viewed, 'image')} measure these two (Wang and Isola, 2020)."
    )
    return Section("Effective rank, alignment, uniformity", explained, tuple(tables))


def _mirror_section(mirrors: Mapping[Level, Mirrors], log_snr: Mapping[Level, float]) -> Section:
    values = mirrors.values()
    rows: list[tuple[object, ...]] = []
    for k in sorted({k for similarity in values for k in similarity.by_distance}):
        name = f"{counted(k, 'block')} away" if k else "the mirror itself"
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
