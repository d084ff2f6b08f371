"""Images for reports: noised images, feature maps, attention, neighbours, and confused classes.

Every function returns a matplotlib figure of its own, outside pyplot's global state.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from difflens.errors import counted
from difflens.processes.base import Level, log_snr_text
from difflens.reports.style import BASELINE, INK, WIDTH, quiet_bar, shortened

# inches
_TILE = 1.5
_EXAMPLE = 0.86
_GAP = 0.05
_LINE = 0.17  # a line of a title
_TEXT_WIDTH = 2.3  # the names of two classes, beside the examples

_HEAT = matplotlib.colormaps["RdBu_r"]
_OCTAVES = 4  # the furthest that weights are told apart: 16 times the mean, and 1/16 of it

_EXAMPLES = 6  # the most images of a pair of classes


def noised_images(images: Tensor, noised: Mapping[Level, Tensor], log_snr: Mapping[Level, float]) -> Figure:
    """Draw images without noise and at each noise step: one row an image.

    Args:
        images: (N, C, S, S) in [-1, 1].
        noised: (N, C, S, S) by noise step, the same images with noise; values beyond [-1, 1] are clipped.
        log_snr: by noise step, from the least to the most noise.
    """
    titles = ["clean", *_noise_titles(log_snr)]
    return _tiles(titles, [_pixels(images), *(_pixels(noised[t]) for t in log_snr)])


def _noise_titles(log_snr: Mapping[Level, float]) -> list[str]:
    return [f"t = {t}\nlog-SNR {log_snr_text(value)}" for t, value in log_snr.items()]


def principal_components(images: Tensor, maps: Mapping[int, Tensor]) -> Figure:
    """Draw feature maps as colour images: one row an image, one column a block.

    A block's colours are the first three principal components of its maps over all positions of all images.
    Colours compare between images, not between blocks.

    Args:
        images: (N, C, S, S) in [-1, 1].
        maps: (N, C, H, W) by block, at one noise step.
    """
    titles = ["input", *(_title(block, values) for block, values in maps.items())]
    return _tiles(titles, [_pixels(images), *map(pca_rgb, maps.values())])


def components_over_noise(
    noised: Mapping[Level, Tensor],
    maps: Mapping[tuple[int, Level], Tensor],
    log_snr: Mapping[Level, float],
    image: int,
) -> Figure:
    """Draw feature maps of one image as colours: one row a noise step, one column a block.

    A block's colours are the first three principal components of its maps over all positions of all images at
    all noise steps. Colours compare within a column.

    Args:
        noised: (N, C, S, S) by noise step, the images that the backbone reads.
        maps: (N, C, H, W) by (block, noise step), every block at every noise step.
        log_snr: by noise step, from the least to the most noise.
        image: index of the image, in [0, N).
    """
    steps = list(log_snr)
    blocks = sorted({block for block, _ in maps})
    columns = [torch.cat([_pixels(noised[t][image : image + 1]) for t in steps])]
    titles = ["input"]
    for block in blocks:
        # one fit a block, so that noise steps share their components
        rgb = pca_rgb(torch.cat([maps[block, t] for t in steps])).unflatten(0, (len(steps), -1))
        columns.append(rgb[:, image])
        titles.append(_title(block, maps[block, steps[0]]))
    return _tiles(titles, columns, _noise_titles(log_snr) if len(steps) > 1 else ())


def _title(block: int, maps: Tensor) -> str:
    return f"block {block}\n{maps.shape[2]} x {maps.shape[3]}"


def attention_overlays(images: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Draw attention over images: one row an image, one column a map.

    A colour is the weight of a position, divided by the mean weight of the map. All maps share its
    logarithmic scale, which reaches from a half to twice the mean, or further where 99 % of the weights do.

    Args:
        images: (N, C, S, S) in [-1, 1].
        maps: (N, H, W) weights, at least 0, by title.
    """
    octaves = [_octaves(weights.detach().cpu().float()[:, None]) for weights in maps.values()]
    reach = torch.cat([each.flatten().abs() for each in octaves]).quantile(0.99)
    limit = min(max(math.ceil(float(reach)), 1), _OCTAVES)
    pixels = _pixels(images).mean(1, keepdim=True)
    columns = [_pixels(images)]
    for values in octaves:
        values = torch.nn.functional.interpolate(values, tuple(pixels.shape[-2:]), mode="bilinear")
        colour = torch.from_numpy(_HEAT((0.5 + values[:, 0] / (2 * limit)).numpy())[..., :3])
        # a dim picture shows outlines, and leaves the colours as the scale has them
        columns.append(colour.permute(0, 3, 1, 2).float() * (0.75 + 0.25 * pixels))
    figure = _tiles(["input", *maps], columns)
    height = figure.get_figheight()
    axes = figure.add_axes((1 / len(columns), -0.3 / height, min(0.5, 1 - 1 / len(columns)), 0.12 / height))
    scale = ScalarMappable(Normalize(-limit, limit), _HEAT)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
    steps = range(-limit, limit + 1)
    bar.set_ticks(steps, labels=[_times(step) for step in steps])
    quiet_bar(bar, "times the mean weight")
    return figure


def _octaves(weights: Tensor) -> Tensor:
    """Return the binary logarithm of weights, (N, 1, H, W), relative to the mean of each map."""
    relative = weights / weights.mean((2, 3), keepdim=True).clamp(min=1e-12)
    return relative.log2().clamp(-_OCTAVES, _OCTAVES)


def _times(octave: int) -> str:
    return str(2**octave) if octave >= 0 else f"1/{2**-octave}"


def nearest_neighbours(
    queries: Tensor, neighbours: Tensor, names: Sequence[str], neighbour_names: Sequence[Sequence[str]]
) -> Figure:
    """Draw images and their nearest neighbours: one row an image, the nearest neighbour first.

    Args:
        queries: (N, C, S, S) in [-1, 1].
        neighbours: (N, K, C, S, S) in [-1, 1].
        names: names of the N images; may be empty texts.
        neighbour_names: K names of the neighbours of each image.
    """
    rows, count = neighbours.shape[:2]
    side = min(_TILE, WIDTH / (count + 1))
    figure, axes = _sheet(side * (count + 1), (side + _LINE) * rows)
    for row in range(rows):
        top = row * (side + _LINE) + _LINE
        titles = [names[row], *neighbour_names[row]]
        for k, image in enumerate([queries[row], *neighbours[row]]):
            _show(axes, _pixels(image), k * side, top, side - _GAP)
            weight = "normal" if k else "bold"
            _heading(axes, shortened(titles[k], 18), k * side + (side - _GAP) / 2, top, size=8, weight=weight)
    return figure


def pca_rgb(maps: Tensor) -> Tensor:
    """Return the first three principal components of feature maps as red, green and blue.

    The components are those of the C-vectors at all positions of all maps. Each is scaled so that its 1st
    percentile is 0 and its 99th is 1. A component that does not vary, or does not exist because C < 3, is
    0.5.

    Args:
        maps: (N, C, H, W), any range.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the CPU.
    """
    count, channels, height, width = maps.shape
    # on the CPU, because not every accelerator has float64
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


def image_columns(columns: Sequence[tuple[str, Tensor]]) -> Figure:
    """Draw images side by side.

    Args:
        columns: title and images (N, C, S, S) in [-1, 1] of each column, all with the same N.
    """
    return _tiles([title for title, _ in columns], [_pixels(images) for _, images in columns], tile=_EXAMPLE)


def confused_pairs(pairs: Sequence[tuple[str, str, int, Tensor]]) -> Figure:
    """Draw pairs of confused classes with images: one row a pair, at most six images each.

    Args:
        pairs: at least one (true class, predicted class, count, images); the images are (N, C, S, S), uint8
            or float in [-1, 1].
    """
    assert pairs, "no pair of classes to show"
    figure, axes = _sheet(_TEXT_WIDTH + _EXAMPLES * _EXAMPLE, len(pairs) * _EXAMPLE)
    for row, (true, predicted, count, images) in enumerate(pairs):
        top = row * _EXAMPLE
        for height, weight, colour, text in (
            (0.22, "bold", INK, shortened(true)),
            (0.5, "normal", INK, f"\u2192 {shortened(predicted)}"),
            (0.78, "normal", BASELINE, counted(count, "image")),
        ):
            y = top + height * _EXAMPLE
            axes.text(0, y, text, weight=weight, color=colour, size=10, va="center", parse_math=False)
        for k, image in enumerate(_pixels(images[:_EXAMPLES])):
            left = _TEXT_WIDTH + k * _EXAMPLE
            _show(axes, image, left, top, _EXAMPLE - _GAP, interpolation="auto")
    return figure


def _pixels(images: Tensor) -> Tensor:
    """Convert images, uint8 or float in [-1, 1], to floats in [0, 1]; noise beyond the range is clipped."""
    if images.dtype == torch.uint8:
        return images.cpu() / 255
    return ((images.float().cpu() + 1) / 2).clamp(0, 1)


def _tiles(
    titles: Sequence[str], columns: Sequence[Tensor], rows_named: Sequence[str] = (), tile: float = _TILE
) -> Figure:
    """Draw small images in a grid.

    Args:
        titles: titles of the columns.
        columns: (N, C, H, W) in [0, 1] of each column; C is 1 (grey) or 3, H and W may differ between
            columns.
        rows_named: names of the rows, or empty.
        tile: the largest side of an image, in inches.
    """
    side = min(tile, WIDTH / len(columns))
    sizes = [_fitted(images[0], side - _GAP) for images in columns]
    width, height = (max(lengths) + _GAP for lengths in zip(*sizes, strict=True))
    left = 2.5 * _LINE if rows_named else 0
    top = _LINE * max(title.count("\n") + 1 for title in titles) + _GAP
    figure, axes = _sheet(left + width * len(columns), top + height * len(columns[0]))
    for column, (title, images) in enumerate(zip(titles, columns, strict=True)):
        x = left + column * width
        _heading(axes, title, x + (width - _GAP) / 2, top, size=10)
        for row, image in enumerate(images):
            _show(axes, image, x, top + row * height, side - _GAP)
    for row, name in enumerate(rows_named):
        centre = top + row * height + (height - _GAP) / 2
        axes.text(
            left - _GAP,
            centre,
            name,
            rotation=90,
            ha="right",
            va="center",
            size=9,
            color=INK,
            parse_math=False,
        )
    return figure


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of this size in inches, and axes that fill it: in inches from the upper left.

    One pair of axes for all images: to make and draw a pair for each takes several times as long.
    """
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _heading(axes: Axes, text: str, x: float, y: float, size: float, weight: str = "normal") -> None:
    """Write a text above a point."""
    axes.text(
        x, y - _GAP, text, ha="center", va="bottom", size=size, weight=weight, color=INK, parse_math=False
    )


def _show(
    axes: Axes, image: Tensor, left: float, top: float, side: float, interpolation: str = "nearest"
) -> None:
    """Draw an image, (C, H, W) in [0, 1], whose longer side takes `side` inches."""
    width, height = _fitted(image, side)
    pixels = image.permute(1, 2, 0).squeeze(2).numpy()  # imshow takes grey as (H, W)
    place = (left, left + width, top + height, top)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=interpolation, extent=place, aspect="auto")


def _fitted(image: Tensor, side: float) -> tuple[float, float]:
    """Return width and height of an image whose longer side is `side`."""
    height, width = image.shape[-2:]
    return side * width / max(height, width), side * height / max(height, width)
