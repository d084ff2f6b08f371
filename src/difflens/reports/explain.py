"""The report of `difflens explain`: feature maps, nearest neighbours, and the attention of a trained head."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from difflens.errors import counted
from difflens.processes.base import Level, bracketed
from difflens.reports.charts import share_bars
from difflens.reports.html import Picture, Section, Table, render
from difflens.reports.pictures import attention_overlays, components_over_noise, nearest_neighbours

_OVERLAYS = 8  # the most maps beside each other; more maps are summed by noise step
_SCALE = "Red is more than the mean of a map, blue is less, and all maps share the scale."

Place = tuple[int, Level]
"""(block, noise step)."""

Explained = tuple[Section, dict[str, Figure]]
"""A section of the report, and its figures by file name without ending."""


def explain_report(
    *, backbone: str, images: str, head: str, sections: Sequence[Section], provenance: Mapping[str, object]
) -> str:
    """Return the report as one self-contained HTML document.

    Args:
        backbone: its name.
        images: the explained images, in words.
        head: the head that reads the features, in words; empty for none.
        sections: from the functions below.
        provenance: rows of the closing table.
    """
    reader = f", read by {head}" if head else ""
    lead = f"The features of {backbone} on {images}{reader}."
    return render(f"Features of {backbone}", lead, sections, provenance)


def components_section(
    noised: Mapping[Level, Tensor],
    maps: Mapping[Place, Tensor],
    log_snr: Mapping[Level, float],
    names: Sequence[str],
) -> Explained:
    """Return the section on the principal components of each image's feature maps.

    Args:
        noised: (N, C, S, S) by noise step, the images that the backbone reads.
        maps: (N, C, H, W) by place, every block at every noise step.
        log_snr: by noise step, from the least to the most noise.
        names: names of the N images.
    """
    figures = {f"components-{k}": components_over_noise(noised, maps, log_snr, k) for k in range(len(names))}
    parts = [
        Picture(figure, f"{name}.", f"Principal components of image {k}")
        for k, (figure, name) in enumerate(zip(figures.values(), names, strict=True))
    ]
    text = (
        "Red, green and blue are the first three principal components of each block's map. They are fitted "
        "over all positions of these images at all noise steps. Colours compare within a column, not between "
        "columns."
    )
    return Section("Feature maps (PCA)", text, tuple(parts)), figures


def neighbours_section(
    images: Tensor,
    neighbours: Tensor,
    names: Sequence[str],
    neighbour_names: Sequence[Sequence[str]],
    searched: str,
) -> Explained:
    """Return the section on the nearest neighbours of images.

    Args:
        images: (N, C, S, S) in [-1, 1].
        neighbours: (N, K, C, S, S) in [-1, 1].
        names: names of the N images.
        neighbour_names: class and similarity of the K neighbours of each image.
        searched: the images that were searched and the features that were compared, in a sentence.
    """
    figure = nearest_neighbours(images, neighbours, names, neighbour_names)
    picture = Picture(
        figure,
        "The image is on the left, followed by its neighbours with their classes and cosine similarities.",
        "Images and their nearest neighbours",
    )
    text = f"{searched} The search did not use labels."
    return Section("Nearest neighbours", text, (picture,)), {"neighbours": figure}


def linear_section(shares: Mapping[str, float], images: int) -> Explained:
    """Return the section on the places that a linear head uses.

    Args:
        shares: shares of the variance of the logits, by place; they sum to 1.
        images: number of test images that they were measured on.
    """
    figure = share_bars(shares, "share of the variance of the logits")
    text = (
        f"Each place's share of the variance of the logits over classes and images, measured on "
        f"{counted(images, 'test image')}. A place with a negative share works against the others."
    )
    if len(shares) == 1:
        text += " This run reads one place; a linear probe on several --blocks has one share a place."
    picture = Picture(
        figure, "The shares sum to 100 %. The log-SNR is in brackets.", "Shares of the logits by block"
    )
    return Section("Shares of the logits by block", text, (picture,)), {"weights": figure}


def mix_section(
    images: Tensor,
    weights: Mapping[Place, Tensor],
    attention: Tensor,
    log_snr: Mapping[Level, float],
) -> Explained:
    """Return the section on the weights of the head mix, and on the positions that its CLS token reads.

    Args:
        images: (N, C, S, S) in [-1, 1], drawn under the weights.
        weights: (H, W) by place, which sum to 1 at each position; (1, 1) for one set of weights.
        attention: (N, H, W), the attention of CLS over the positions of `images`.
        log_snr: by noise step, from the least to the most noise.
    """
    names = {
        (block, t): f"block {block}, t = {bracketed(t, log_snr[t])}"
        for t in log_snr
        for block in sorted({block for block, _ in weights})
    }
    bars = share_bars({names[place]: float(weights[place].mean()) for place in names}, "weight in the mix")
    spatial = any(each.numel() > 1 for each in weights.values())
    over = " They are means over positions." if spatial else ""
    text = (
        "Each block's map is normalised and projected, and the maps are added with these weights, which are "
        "the same for all images. Noise steps of one block share a projection, so their weights compare. "
        "Weights of two blocks compare only roughly, since the projections differ in scale."
    )
    parts: list[Picture | Table] = [
        Picture(
            bars,
            f"The weights sum to 100 %.{over} The log-SNR is in brackets.",
            "Weights of the mix by block and noise step",
        )
    ]
    overlays = {"CLS's attention": attention}
    shown = "The attention of CLS over the mixed map"
    if spatial and len(weights) <= _OVERLAYS:
        shown += ", and the weights of each position"
        spread = {names[p].replace(", ", "\n"): weights[p].expand(len(images), -1, -1) for p in names}
        overlays |= spread
    overlay = attention_overlays(images, overlays)
    parts.append(
        Picture(
            overlay,
            f"{shown}. {_SCALE}",
            "Attention of CLS over images",
        )
    )
    return Section("Weights of the mix", text, tuple(parts)), {"mix": bars, "attention": overlay}


def attention_section(
    images: Tensor,
    weights: Mapping[Place, Tensor],
    attention: Mapping[Place, float],
    own: Mapping[Level, float],
    contributions: Mapping[Level, float],
    log_snr: Mapping[Level, float],
    count: int,
) -> Explained:
    """Return the section on the attention of the CLS tokens of an attention head or DifFormer.

    Args:
        images: (N, C, S, S) in [-1, 1], drawn under the attention.
        weights: (N, H, W) by place, the attention of CLS over the positions of `images`.
        attention: mean share of CLS's attention by place, over the test images.
        own: mean share of CLS's attention on CLS itself by noise step, over the test images.
        contributions: share of the variance of the logits, by noise step.
        log_snr: by noise step, from the least to the most noise.
        count: number of test images.
    """
    blocks = sorted({block for block, _ in weights})
    names = {t: f"t = {bracketed(t, value)}" for t, value in log_snr.items()}
    places = [(block, t) for t in names for block in blocks]
    if len(weights) <= _OVERLAYS:
        overlays = {f"block {block}\n{names[t]}": weights[block, t] for block, t in places}
    else:
        overlays = {f"all blocks\n{names[t]}": _summed([weights[b, t] for b in blocks]) for t in names}
    overlay = attention_overlays(images, overlays)
    bars = share_bars(
        {f"block {block}, {names[t]}": attention[block, t] for block, t in places},
        "share of CLS's attention at this noise step",
    )
    rows: list[tuple[object, ...]] = []
    for t, name in names.items():
        shares = (*(attention[block, t] for block in blocks), own[t], contributions[t])
        rows.append((name, *(f"{100 * share:.1f}" for share in shares)))
    # uniform attention gives every token, CLS included, the same share
    tokens = [*(weights[block, places[0][1]][0].numel() for block in blocks), 1]
    rows.append(("if all tokens had the same", *(f"{100 * n / sum(tokens):.1f}" for n in tokens), None))
    maps = (f"block {block}, %" for block in blocks)
    columns = ("Noise step (log-SNR)", *maps, "CLS itself, %", "share of logits, %")
    text = (
        "The attention of CLS over the maps in the last transformer block, averaged over attention heads and "
        f"{counted(count, 'test image')}. Each noise step has its own CLS token, whose attention "
        "sums to 100 %. The share of the variance of the logits says how much a noise step matters."
    )
    parts = (
        Picture(
            overlay,
            f"Attention over the positions of the image. {_SCALE} The log-SNR is in brackets.",
            "Attention of CLS over images",
        ),
        Table(columns, rows, "Mean shares. The last row is uniform attention over all tokens."),
        Picture(
            bars, "The shares of the table. The log-SNR is in brackets.", "Shares of the attention of CLS"
        ),
    )
    section = Section("Attention of the CLS token", text, parts)
    return section, {"attention": overlay, "attention-shares": bars}


def _summed(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of the attention over several maps, each (N, S, S), on the grid of the largest map."""
    side = max(attention.shape[-1] for attention in weights)
    total = torch.zeros(())
    for attention in weights:
        grown = torch.nn.functional.interpolate(attention.cpu()[:, None], (side, side), mode="bilinear")[:, 0]
        # a token's weight is spread over the positions that it covers
        total = total + grown * (attention.shape[-1] / side) ** 2
    return total
