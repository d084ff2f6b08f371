"""The report of `difflens explain`: feature maps, nearest neighbours, and what a trained head attends to."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from difflens.reports.charts import share_bars
from difflens.reports.html import Picture, Section, Table, render
from difflens.reports.pictures import attention_overlays, components_over_noise, nearest_neighbours

_OVERLAYS = 8  # maps beside each other; of more, the sum of each noise step

Place = tuple[int, int]
"""(block, noise step)."""

Explained = tuple[Section, dict[str, Figure]]
"""A section of the report, and its figures by the names of their files."""


def explain_report(
    *, backbone: str, data: str, head: str, sections: Sequence[Section], provenance: Mapping[str, object]
) -> str:
    """One self-contained HTML document.

    Args:
        head: which head reads the features, in words; empty: none.
        sections: of the functions below.
        provenance: rows of the closing table.
    """
    read = f", read by {head}" if head else ""
    lead = f"The features of {backbone} on images of {data}{read}."
    return render(f"Features of {backbone}", lead, sections, provenance)


def components_section(
    noised: Mapping[int, Tensor], maps: Mapping[Place, Tensor], names: Sequence[str]
) -> Explained:
    """The principal components of each image's feature maps.

    Args:
        noised: (N, C, S, S) by noise step, the images that the backbone sees.
        maps: (N, C, H, W) by place, every block at every noise step.
        names: of the N images.
    """
    figures = {f"components-{k}": components_over_noise(noised, maps, k) for k in range(len(names))}
    parts = [
        Picture(figure, f"{name}.", f"Principal components of image {k}")
        for k, (figure, name) in enumerate(zip(figures.values(), names, strict=True))
    ]
    text = (
        "The first three principal components of each block's map as red, green and blue, fitted over all positions "
        "of these images at all noise steps: within a column colours compare, between columns they do not."
    )
    return Section("Feature maps (PCA)", text, tuple(parts)), figures


def neighbours_section(
    images: Tensor, found: Tensor, names: Sequence[str], found_names: Sequence[Sequence[str]], searched: str
) -> Explained:
    """Images beside their nearest neighbours.

    Args:
        images: (N, C, S, S) in [-1, 1].
        found: (N, K, C, S, S), likewise.
        names: of the N images.
        found_names: class and similarity of the K neighbours of each.
        searched: among which images, by which features, in a sentence.
    """
    figure = nearest_neighbours(images, found, names, found_names)
    picture = Picture(
        figure, "On the left the image, then its neighbours with their classes and cosine similarities.",
        "Images and their nearest neighbours",
    )  # fmt: skip
    text = f"{searched} Labels played no part in finding them."
    return Section("Nearest neighbours", text, (picture,)), {"neighbours": figure}


def linear_section(shares: Mapping[str, float], images: int) -> Explained:
    """Which places a linear head uses.

    Args:
        shares: of the variance of the logits, by place; they sum to 1.
        images: how many they were measured on.
    """
    figure = share_bars(shares, "share of the variance of the logits")
    text = (
        f"How much of what tells classes and images apart in the logits comes from each place, measured on {images:,} "
        "test images. A negative share means that a place works against the others."
    )
    if len(shares) == 1:
        text += " This run reads one place; a linear probe on several --blocks shows more."
    picture = Picture(
        figure, "Shares of the places; they sum to 100 %.", "Which blocks the linear probe uses"
    )
    return Section("Shares of the logits by block", text, (picture,)), {"weights": figure}


def attention_section(
    images: Tensor,
    weights: Mapping[Place, Tensor],
    attention: Mapping[Place, float],
    own: Mapping[int, float],
    contributions: Mapping[int, float],
    count: int,
) -> Explained:
    """Where the CLS tokens of an attention head or DifFormer look.

    Args:
        images: (N, C, S, S) in [-1, 1], to show.
        weights: (N, H, W) by place, the attention of CLS over them.
        attention: mean share of CLS's attention by place, over the test images.
        own: likewise on CLS itself, by noise step.
        contributions: share of the variance of the logits, by noise step.
        count: of the test images.
    """
    steps, blocks = list(own), sorted({block for block, _ in weights})
    if len(weights) <= _OVERLAYS:
        overlays = {f"block {block}\nt = {t}": each for (block, t), each in weights.items()}
    else:
        overlays = {f"all blocks\nt = {t}": _summed([weights[b, t] for b in blocks]) for t in steps}
    overlay = attention_overlays(images, overlays)
    bars = share_bars(
        {f"block {block}, t = {t}": share for (block, t), share in attention.items()},
        "share of CLS's attention at this noise step",
    )
    rows: list[tuple[object, ...]] = [
        (f"t = {t}", *(f"{100 * attention[block, t]:.1f}" for block in blocks), f"{100 * own[t]:.1f}",
         f"{100 * contributions[t]:.1f}")
        for t in steps
    ]  # fmt: skip
    tokens = [weights[block, steps[0]][0].numel() for block in blocks]
    even = 1 + sum(tokens)
    rows.append(
        ("if all tokens had the same", *(f"{100 * n / even:.1f}" for n in tokens), f"{100 / even:.1f}", None)
    )
    columns = (
        "Noise step",
        *(f"block {block}, %" for block in blocks),
        "CLS itself, %",
        "share of logits, %",
    )
    text = (
        "Weights with which CLS attends to the maps in the last transformer block, averaged over attention heads and "
        f"{count:,} test images. Each noise step has a CLS of its own, whose attention sums to 100 %; how much the "
        "noise steps matter is seen in the logits, as each one's share of their variance."
    )
    section = Section("Attention of the CLS token", text, (
        Picture(overlay, "Attention over the places of the image, each overlay scaled to its own maximum.",
                "Attention of CLS over images"),
        Table(columns, rows, "Shares; the last row is what the number of tokens alone would give."),
        Picture(bars, "The same shares.", "Shares of the attention of CLS"),
    ))  # fmt: skip
    return section, {"attention": overlay, "attention-shares": bars}


def _summed(weights: Sequence[Tensor]) -> Tensor:
    """The attention of several maps, each (N, S, S), on the grid of the largest."""
    side = max(each.shape[-1] for each in weights)
    total = torch.zeros(())
    for each in weights:
        grown = torch.nn.functional.interpolate(each.cpu()[:, None], (side, side), mode="bilinear")[:, 0]
        # a token's weight is spread over the positions that it covers
        total = total + grown * (each.shape[-1] / side) ** 2
    return total
