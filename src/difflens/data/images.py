"""From image files to tensors of the size a network takes.

Images stay uint8 until the network needs them: a quarter of the memory, and exact wherever they are prepared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from difflens.choices import Augmentation
from difflens.errors import DiffLensError
from difflens.noise import Stream, draws

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"
)  # fmt: skip
# Pillow would also open formats that run other programs (EPS runs Ghostscript), so the list is closed
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on it turns an image by a quarter
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

MARGIN = 4
"""Images at most this many pixels short of the network's side are padded rather than resized."""


class BadImage(DiffLensError):
    """An image that cannot be decoded.

    Attributes:
        where: the file or the entry of a data set.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"cannot read image {self.where}: {self.reason}"


def read_image(path: Path) -> Tensor:
    """Decode an image file.

    EXIF orientation is applied. Grey files (8 bit, 16 bit scaled to 8, black and white) give one channel,
    everything else three: palettes, CMYK and the like become RGB, transparency is composited on black. Of an
    animation, the first frame.

    Returns:
        uint8, (C, H, W) with C 1 or 3.

    Raises:
        BadImage: the file is missing, empty, truncated, not an image, or so large that it must be an attack.
    """
    return decode_image(path, str(path))


def decode_image(source: Path | BinaryIO, where: str) -> Tensor:
    """`read_image` for a path or an open binary file, which errors call `where`."""
    with _opened(source, where) as image:
        return from_pil(image)


def open_image(path: Path) -> Image.Image:
    """An image file as Pillow decodes it, in its own mode: for masks and transparency; errors as of `read_image`."""
    with _opened(path, str(path)) as image:
        image.load()
        return image.copy()


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) that `read_image` would give, from the file's header alone; errors as there."""
    with _opened(path, str(path)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return image.size if turned else (image.height, image.width)


@contextmanager
def _opened(source: Path | BinaryIO, where: str) -> Iterator[Image.Image]:
    """Anything that goes wrong while the image is open is a BadImage."""
    try:
        if isinstance(source, Path) and source.stat().st_size == 0:
            raise BadImage(where, "the file is empty")
        with Image.open(source, formats=_FORMATS) as image:
            yield image
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(where, "there is no such file") from None
    except UnidentifiedImageError:
        raise BadImage(where, f"not an image ({', '.join(_FORMATS)} are read)") from None
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        reason = error.strerror if isinstance(error, OSError) else None
        raise BadImage(where, reason or str(error) or type(error).__name__) from error


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 (C, H, W), C 1 or 3, under the rules of `read_image`; ValueError for mode F."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return torch.from_numpy(((wide + 128) // 257).astype(np.uint8))[None]
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def fit(images: Tensor, channels: int, side: int) -> Tensor:
    """Bring images to the shape a network takes.

    Images that are nearly large enough (`MARGIN`) are padded with black on all sides, as 28-pixel MNIST
    becomes 32; others have their shorter side resized to `side` (antialiased bicubic) and are cropped at the
    centre, as the paper evaluates.

    Args:
        images: uint8, (..., C, H, W), C 1 or 3.
        channels: 1 or 3; RGB becomes grey by ITU-R 601 luma, grey is repeated.
        side: in pixels.

    Returns:
        uint8, (..., channels, side, side).

    Raises:
        DiffLensError: images of C channels cannot become images of `channels` channels.
    """
    images = with_channels(images, channels)
    height, width = images.shape[-2:]
    if _is_padded(images, side):
        top, left = (side - height) // 2, (side - width) // 2
        return F.pad(images, (left, side - width - left, top, side - height - top))
    images = _resize(images, side)
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def augment(images: Tensor, kind: Augmentation, channels: int, side: int, draws: Tensor) -> Tensor:
    """`fit`, with random changes for training.

    Args:
        images: uint8, (B, C, H, W), C 1 or 3.
        kind: "none" is `fit`; "flip" adds a horizontal flip with probability 1/2; "crop" is the paper's
            training transform: shorter side uniform in side .. 1.25 side, random crop, flip. Images that
            `fit` pads are shifted by at most `MARGIN` pixels instead of being resized.
        channels, side: as for `fit`.
        draws: (B, 4) long from `augmentation_draws`, on the device of `images`.

    Returns:
        uint8, (B, channels, side, side).
    """
    if kind == "none":
        return fit(images, channels, side)
    if kind == "flip":
        return _random_window(fit(images, channels, side), side, draws)
    if _is_padded(images, side):
        return _random_window(F.pad(fit(images, channels, side), (MARGIN,) * 4), side, draws)
    images = with_channels(images, channels)
    shorter = side + _pick(draws[:, 0], side // 4 + 1)
    result = images.new_empty(len(images), channels, side, side)
    for size in sorted(set(shorter.tolist())):
        members = shorter == size
        result[members] = _random_window(_resize(images[members], size), side, draws[members])
    return result


def augmentation_draws(index: Tensor, seed: int, epoch: int) -> Tensor:
    """The random numbers of `augment`: (B, 4) long in [0, 2**32), a pure function of (seed, epoch, index).

    Args:
        index: of each image in its data set, (B,) long.
    """
    return draws(Stream.AUGMENTATION, index, seed, epoch)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1], clamped, as uint8: the inverse of `to_float`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 (..., C, H, W) with `channels` channels, 1 or 3: RGB becomes grey by ITU-R 601 luma, grey is repeated."""
    have = images.shape[-3]
    if have == channels:
        return images
    if (have, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, -1, -1)
    if (have, channels) == (3, 1):
        red, green, blue = images.int().unbind(-3)
        # 0.299, 0.587 and 0.114 in 16-bit fixed point: the same grey on every device
        return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).to(torch.uint8).unsqueeze(-3)
    raise DiffLensError(
        f"images of {have} channels cannot become {channels}: images and networks have 1 or 3"
    )


def _is_padded(images: Tensor, side: int) -> bool:
    return all(side - MARGIN <= length <= side for length in images.shape[-2:])


def _resize(images: Tensor, shorter: int) -> Tensor:
    """Antialiased bicubic resize, so that the shorter side is `shorter`."""
    height, width = images.shape[-2:]
    scale = shorter / min(height, width)
    size = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
    if size == (height, width):
        return images
    flat = images.reshape(-1, *images.shape[-3:]).float()
    resized = F.interpolate(flat, size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    return resized.reshape(*images.shape[:-2], *size)


def _random_window(images: Tensor, side: int, draws: Tensor) -> Tensor:
    """From each image (B, C, H, W) a random square of `side`, mirrored for every second one."""
    height, width = images.shape[-2:]
    steps = torch.arange(side, device=images.device)
    rows = _pick(draws[:, 1], height - side + 1)[:, None] + steps
    columns = _pick(draws[:, 2], width - side + 1)[:, None] + steps
    columns = torch.where(_pick(draws[:, 3], 2).bool()[:, None], columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _pick(draws: Tensor, count: int) -> Tensor:
    """Integers uniform in 0 .. count - 1 from 32-bit words, in exact arithmetic."""
    return (draws * count) >> 32
