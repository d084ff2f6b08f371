"""Pictures for reports: what a backbone sees, what it makes of it, and how well its heads do.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

from collections.abc import Collection, Sequence
from math import ceil

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from difflens.backbones.blocks import DiffusionBackbone
from difflens.noise import seeded_noise

ACCENT = "#2f5bd0"
BASELINE = "#6f7680"
INK = "#20242b"
LINE = "#e6e8ec"

# inches, to suit the report
_WIDTH = 9.5
_TEXT_WIDTH = 7.3
_TILE = 1.5
_CELL_TEXT = 30  # the most classes whose counts fit into the cells of a confusion matrix
_LABELS = 25  # the most labels on an axis of more classes than that


@torch.inference_mode()
def noised_images(
    backbone: DiffusionBackbone, images: Tensor, noise_steps: Sequence[int], seed: int
) -> Figure:
    """Images as the backbone sees them: a row an image, clean and then at each noise step.

    Args:
        images: (N, C, S, S) in [-1, 1], on the backbone's device; image k has the noise of index k.
        noise_steps: of the backbone's schedule.
        seed: of the noise.
    """
    steps = backbone.check_noise_steps(noise_steps)
    columns = [images, *(_noised(backbone, images, t, seed) for t in steps)]
    return _tiles(["clean", *(f"t = {t}" for t in steps)], [_pixels(column) for column in columns])


@torch.inference_mode()
def principal_components(
    backbone: DiffusionBackbone, images: Tensor, blocks: Sequence[int], noise_step: int, seed: int
) -> Figure:
    """Feature maps as colour images: a row an image, a column a block.

    A block's colours are the first three principal components of its maps over all positions of all images,
    so they compare between images, not between blocks.

    Args:
        images: (N, C, S, S) in [-1, 1], on the backbone's device; image k has the noise of index k.
        blocks: indices of blocks to show.
        noise_step: the t to read them at.
        seed: of the noise.
    """
    blocks = backbone.check_blocks(blocks)
    (noise_step,) = backbone.check_noise_steps((noise_step,))
    maps = backbone.features(_noised(backbone, images, noise_step, seed), noise_step, blocks)
    titles = ["input", *(f"block {b}\n{maps[b].shape[2]} x {maps[b].shape[3]}" for b in blocks)]
    return _tiles(titles, [_pixels(images), *(pca_rgb(maps[b]) for b in blocks)])


def pca_rgb(maps: Tensor) -> Tensor:
    """The first three principal components of feature maps as red, green and blue.

    The components are those of the C-vectors at all positions of all maps. Each is scaled so that its 1st
    percentile is 0 and its 99th is 1; one that does not vary, or does not exist because C < 3, is 0.5.

    Args:
        maps: (N, C, H, W), any range.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the CPU.
    """
    count, channels, height, width = maps.shape
    # the CPU, because not every accelerator has float64
    vectors = maps.detach().cpu().double().permute(0, 2, 3, 1).reshape(-1, channels)
    centred = vectors - vectors.mean(0)
    # eigenvectors of the C x C scatter matrix: the right singular vectors of `centred`, at less cost
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :3]
    # an eigenvector's sign is arbitrary: its largest entry is made positive
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = centred @ (axes * signs)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)
    varies = high - low > 1e-6 * vectors.abs().max()
    scaled = torch.where(varies, (scores - low) / (high - low), 0.5).clamp(0, 1)
    rgb = torch.full((len(vectors), 3), 0.5)
    rgb[:, : scaled.shape[1]] = scaled.float()
    return rgb.reshape(count, height, width, 3).permute(0, 3, 1, 2)


def confusion_matrix(matrix: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Which classes are taken for which.

    Colours are shares of a true class, on a square-root scale, so that rare confusions are seen. Cells hold
    counts (none is 0); beyond 30 classes there are colours only, and some of the labels.

    Args:
        matrix: (K, K) counts; rows are true classes, columns predictions.
        classes: K names.
        title: above the matrix; may be empty.
    """
    count = len(classes)
    assert matrix.shape == (count, count), f"{count} classes, but the matrix is {tuple(matrix.shape)}"
    matrix = matrix.cpu()
    shares = matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)
    small = count <= _CELL_TEXT
    side = min(_WIDTH, max(4.0, 1.8 + (0.5 if small else 0.25) * count))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, count, 1 if small else ceil(count / _LABELS))
    names = [_shortened(classes[k]) for k in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.set_title(title, color=INK, parse_math=False)
    _quiet(axes)
    if small:
        size = 9 if count <= 15 else 6
        for row, column in matrix.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.35 else INK
            text = f"{int(matrix[row, column])}"
            axes.text(column, row, text, ha="center", va="center", size=size, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    marks = (0, 0.01, 0.05, 0.2, 0.5, 1)
    bar.set_ticks([mark**0.5 for mark in marks], labels=[f"{100 * mark:g} %" for mark in marks])
    bar.set_label("of the true class", size=8, color=INK)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def accuracy_bars(
    names: Sequence[str],
    top1: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    baseline_names: Collection[str] = (),
) -> Figure:
    """Accuracies as dots with their intervals, from top to bottom; a dotted line marks the best baseline.

    Args:
        names: of the rows.
        top1: shares in [0, 1].
        intervals: (low, high) shares around them.
        baseline_names: those of `names` to show in grey.
    """
    figure = Figure(figsize=(_TEXT_WIDTH, 0.9 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, (name, value, (low, high)) in enumerate(zip(names, top1, intervals, strict=True)):
        colour = BASELINE if name in baseline_names else ACCENT
        ends = [100 * low, 100 * high]
        axes.plot(ends, [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(100 * value, row, "o", color=colour, markersize=7)
        axes.annotate(
            f"{100 * value:.1f}", (100 * high, row), (9, 0), textcoords="offset points", va="center", size=10,
            color=colour if name in baseline_names else INK,
        )  # fmt: skip
    baselines = [value for name, value in zip(names, top1, strict=True) if name in baseline_names]
    if baselines:
        axes.axvline(100 * max(baselines), color=BASELINE, linewidth=1, linestyle=(0, (1, 3)), zorder=0)
    axes.set_yticks(range(len(names)), [_shortened(name, 44) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.09)
    axes.set_xlabel("top-1 accuracy, %", color=INK)
    left, right = axes.get_xlim()  # the margins may leave 0 .. 100, the ticks may not
    ticks = [tick for tick in axes.get_xticks() if max(left, 0) <= tick <= min(right, 100)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    _quiet(axes)
    return figure


def _noised(backbone: DiffusionBackbone, images: Tensor, t: int, seed: int) -> Tensor:
    index = torch.arange(len(images), device=images.device)
    return backbone.add_noise(images, t, seeded_noise(tuple(images.shape[1:]), index, t, seed))


def _pixels(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], cut off there: noise leaves the range."""
    return ((images.float().cpu() + 1) / 2).clamp(0, 1)


def _tiles(titles: Sequence[str], columns: Sequence[Tensor]) -> Figure:
    """Small images in a grid: each column is (N, C, H, W) in [0, 1], C 1 (grey) or 3, of its own size."""
    rows = len(columns[0])
    side = min(_TILE, _WIDTH / len(columns))
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02, compress=True)
    figure = Figure(figsize=(side * len(columns), side * rows + 0.45), layout=layout)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for k, (title, images) in enumerate(zip(titles, columns, strict=True)):
        grid[0, k].set_title(title, size=10, color=INK)
        for axes, image in zip(grid[:, k], images, strict=True):
            pixels = image.permute(1, 2, 0).squeeze(2).numpy()  # imshow takes grey as (H, W)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    return figure


def _quiet(axes: Axes) -> None:
    axes.tick_params(length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _shortened(name: str, length: int = 24) -> str:
    line = " ".join(name.split())
    return line if len(line) <= length else f"{line[: length - 1]}\u2026"
