"""A grid of images in one picture."""

from math import ceil

import torch
from PIL import Image
from torch import Tensor

from difflens.data.images import to_uint8


def image_grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Image.Image:
    """Return images, (N, C, H, W) float32 in [-1, 1], as one picture, row by row on white.

    Args:
        columns: images in a row; None: a square grid.
        gap: pixels between images.
    """
    count, channels, height, width = images.shape
    columns = columns or ceil(count**0.5)
    rows = ceil(count / columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for k, image in enumerate(to_uint8(images)):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return to_picture(sheet)


def to_picture(image: Tensor) -> Image.Image:
    """Return an image, (C, H, W) uint8, as a grey or RGB picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if image.shape[0] == 1 else array)
