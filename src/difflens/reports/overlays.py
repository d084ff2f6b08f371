"""Labels or predictions of a dense task drawn over the image: classes of pixels, or objects."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import ceil

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from difflens.data.dense.base import IGNORED, Objects
from difflens.data.dense.masks import class_palette, palette
from difflens.data.images import with_channels
from difflens.reports.fonts import usual_font
from difflens.reports.style import INK, WIDTH, shortened

_OPAQUE = 0.75  # colours over a grey picture, near those of the legend
_SMALLEST = 320
"""Least pixels of an overlay's longer side; smaller images are enlarged, to make room for lines and names."""
_GAP = 6  # pixels between the pictures of a grid
_TILE = 2.4  # inches of a picture's width
_LETTERS = 13  # pixels of a letter's height
_NAMED = 24  # the most classes in a legend


def mask_overlay(image: Tensor, mask: Tensor, classes: Sequence[str]) -> Image.Image:
    """Draw the colours of classes over an image; background and ignored pixels are not painted.

    Args:
        image: (C, H, W) uint8.
        mask: (H, W) uint8, the classes.
        classes: their names, in the order of the values in the mask.
    """
    canvas, factor = _enlarged(image)
    colours = torch.from_numpy(class_palette(classes))
    values = _repeated(mask, factor)
    painted = colours[values.long()].permute(2, 0, 1)
    covered = (painted != 0).any(0) & (values != IGNORED)
    grey = canvas.float().mean(0)
    mixed = (_OPAQUE * painted + (1 - _OPAQUE) * grey).round().to(torch.uint8)
    return _to_pil(torch.where(covered, mixed, canvas))


def object_overlay(image: Tensor, objects: Objects, classes: Sequence[str]) -> Image.Image:
    """Draw boxes, masks, names and scores of objects over an image; an object has the colour of its class.

    Args:
        image: (C, H, W) uint8.
        objects: boxes in pixels of the image, and labels from 1; masks and scores are optional.
        classes: their names; label k is `classes[k - 1]`.
    """
    canvas, factor = _enlarged(image)
    if not len(objects.boxes):
        return _to_pil(canvas)
    # the palette's first colour is that of no class; beyond 255 classes, colours repeat
    numbers = (objects.labels.cpu().numpy() - 1) % (len(palette()) - 1) + 1
    colours = [(red, green, blue) for red, green, blue in palette()[numbers].tolist()]
    if objects.masks is not None:
        canvas = draw_segmentation_masks(
            canvas, _repeated(objects.masks.cpu(), factor), alpha=0.5, colors=colours
        )
    names = [shortened(classes[label - 1]) for label in objects.labels.tolist()]
    if objects.scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, objects.scores.tolist(), strict=True)]
    labelled = draw_bounding_boxes(
        canvas,
        factor * objects.boxes.cpu(),
        names,
        colours,
        width=2,
        font=usual_font(),
        font_size=_LETTERS,
        label_colors=[_legible(colour) for colour in colours],
        label_background_colors=colours,
        fill_labels=True,
    )
    return _to_pil(labelled)


def legend_of(values: Iterable[int], classes: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
    """Return (colour, name) of the classes that overlays paint, of the values of masks."""
    colours = class_palette(classes).tolist()
    shown = (value for value in sorted({*values} - {IGNORED}) if any(colours[value]))
    return [(tuple(colours[value]), classes[value]) for value in shown]


def with_legend(picture: Image.Image, classes: Sequence[tuple[tuple[int, ...], str]]) -> Image.Image:
    """Return a picture above the colours and names of classes, in as many rows as they need.

    Args:
        picture: an RGB image.
        classes: as in `examples`.
    """
    font = ImageFont.truetype(usual_font(), _LETTERS)
    places, x, rows = [], _GAP, 1
    for colour, name in classes:
        text = shortened(name)
        length = _LETTERS + _GAP + ceil(font.getlength(text)) + 2 * _GAP
        if x > _GAP and x + length > picture.width:
            x, rows = _GAP, rows + 1
        places.append((x, rows - 1, colour, text))
        x += length
    if not places:
        return picture
    row = _LETTERS + _GAP
    sheet = Image.new("RGB", (picture.width, picture.height + rows * row + _GAP), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for x, k, colour, text in places:
        top = picture.height + _GAP + k * row
        draw.rectangle((x, top, x + _LETTERS - 1, top + _LETTERS - 1), fill=colour)
        draw.text((x + _LETTERS + _GAP, top + _LETTERS // 2), text, "black", font, anchor="lm")
    return sheet


def examples(
    titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    classes: Sequence[tuple[tuple[int, ...], str]],
) -> Figure:
    """Draw pictures in a grid with a legend.

    Args:
        titles: titles of the columns.
        rows: the pictures of each row, one a column.
        classes: (colour, name) of the classes in the legend, colours as red, green and blue, 0 to 255; empty
            for no legend.
    """
    step = _SMALLEST + _GAP
    fitted = [[ImageOps.contain(picture, (_SMALLEST, _SMALLEST)) for picture in row] for row in rows]
    # a row is as high as its highest picture
    tops = [0, *accumulate(max(picture.height for picture in row) + _GAP for row in fitted)]
    sheet = Image.new("RGB", (step * len(titles) - _GAP, tops.pop() - _GAP), "white")
    for top, row in zip(tops, fitted, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * step, top))
    legend = 0.25 * -(-len(classes[:_NAMED]) // 4)
    width = min(WIDTH, _TILE * len(titles))
    height = width * sheet.height / sheet.width + 0.3 + legend
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, legend / height, 1, 1 - (0.3 + legend) / height))
    axes.imshow(sheet, aspect="auto")
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks([step * (k + 0.5) for k in range(len(titles))], titles, size=10, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if classes:
        patches = [Patch(color=tuple(part / 255 for part in colour)) for colour, _ in classes[:_NAMED]]
        names = [shortened(name) for _, name in classes[:_NAMED]]
        drawn = figure.legend(
            patches, names, loc="lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure


def _legible(colour: tuple[int, int, int]) -> str:
    """Return the colour of letters on a background colour, by its luma."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _enlarged(image: Tensor) -> tuple[Tensor, int]:
    """Return the image as RGB with repeated pixels, and how often each pixel is repeated."""
    factor = max(1, -(-_SMALLEST // max(image.shape[-2:])))
    return _repeated(with_channels(image.cpu(), 3), factor).contiguous(), factor


def _repeated(pixels: Tensor, factor: int) -> Tensor:
    return pixels.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
