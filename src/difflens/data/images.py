"""Decodes image files, and resizes, crops and augments them for a network.

Images are uint8 until the network reads them. This takes a quarter of the memory, and is exact on every
device.
"""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torch import Tensor

from difflens.choices import Augmentation, Exif
from difflens.errors import DiffLensError, counted, expanded
from difflens.noise import Stream, draws
from difflens.run.console import note

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
"""Suffixes of image files. Files without a suffix are looked into (`is_image`)."""
# a closed list: Pillow also opens formats that run other programs (EPS runs Ghostscript)
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on swap height and width
_TURN = {  # stored pixels to an upright image
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = {**_TURN, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

LONGEST = 50
"""The longer side of an image is at most this many times the shorter, which is scaled to a network's side."""

MARGIN = 4
"""An image that is at most this many pixels smaller than the network's side is padded, not resized."""


class BadImage(DiffLensError):
    """An image that cannot be decoded.

    Attributes:
        where: the file, or the entry of a data set.
        reason: the reason why it cannot be decoded.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"cannot read image {self.where}: {self.reason}"


class StorageError(DiffLensError):
    """Storage that fails, rather than an image: no image is left out for it."""


# of network drives above all; Pillow's own errors about damaged files have no number
_STORAGE_FAILS = {
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN),
    getattr(errno, "ESTALE", errno.EIO),  # unknown to Windows
}


def check_storage(error: Exception, where: str) -> None:
    """Raise StorageError if `error`, which occurred at `where`, is one of the storage."""
    if isinstance(error, OSError) and error.errno in _STORAGE_FAILS:
        raise StorageError(f"cannot read {where}: {error.strerror}; this is no fault of the image") from error


def read_image(path: Path, exif: Exif = "apply") -> Tensor:
    """Decode an image file.

    EXIF orientation turns it upright, unless `exif` is "ignore". Grey files (8 bit, 16 bit scaled to 8, black
    and white) give one channel. All others give three: palettes, CMYK and the like become RGB, and
    transparency is composited on black. An animation gives its first frame.

    Returns:
        uint8, (C, H, W) with C 1 or 3.

    Raises:
        BadImage: the file is missing, no regular file, empty, truncated, not an image, without pixels, too
            large (a decompression bomb), or more than `LONGEST` times as long as wide.
    """
    return decode_image(path, str(path), exif)


def decode_image(source: Path | BinaryIO, where: str, exif: Exif = "apply") -> Tensor:
    """Decode a path or an open binary file by the rules of `read_image`; errors call it `where`."""
    with _opened(source, where) as image:
        return from_pil(image, exif)


def open_image(path: Path, exif: Exif = "apply") -> Image.Image:
    """Return an image file as Pillow decodes it, in its own mode, for masks and transparency.

    Raises:
        BadImage: for the reasons of `read_image`.
    """
    with _opened(path, str(path)) as image:
        return _turned(image, exif).copy()


def open_mask(path: Path, exif: Exif = "apply") -> tuple[Image.Image, str]:
    """Return an image file as `open_image` does, and why its values are not those it was made of, or "".

    Raises:
        BadImage: for the reasons of `read_image`.
    """
    with _opened(path, str(path)) as image:
        change = _altered(image)
        return _turned(image, exif).copy(), change


def open_picture(path: Path) -> Image.Image:
    """Return an image file as a Pillow image of mode L or RGB, by the rules of `read_image`.

    Raises:
        BadImage: for the reasons of `read_image`.
    """
    with _opened(path, str(path)) as image:
        return _plain(image, "apply")


def is_image(path: Path) -> bool:
    """Return True if a file begins as an image of a format that `read_image` decodes."""
    try:
        with _opened(path, str(path)):
            return True
    except BadImage:
        return False


def image_size(path: Path, exif: Exif = "apply") -> tuple[int, int]:
    """Return the (height, width) that `read_image` gives, from the file's header alone.

    Raises:
        BadImage: for the reasons of `read_image`, if the header shows them.
    """
    with _opened(path, str(path)) as image:
        # of a TIFF file Pillow gives the size of the upright image, of other files that of the stored one
        swapped = _orientation(image) >= 5 and (image.format == "TIFF") != (exif == "apply")
        return image.size if swapped else (image.height, image.width)


def orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 (upright) to 8; from 5 on, height and width swap.

    Raises:
        BadImage: for the reasons of `read_image`, if the header shows them.
    """
    with _opened(path, str(path)) as image:
        return _orientation(image)


def image_shape(path: Path, exif: Exif = "apply") -> tuple[int, int, int]:
    """Return the shape (C, H, W) that `read_image` gives, from the file's header alone.

    Raises:
        BadImage: for the reasons of `read_image`, if the header shows them.
    """
    height, width = image_size(path, exif)
    with _opened(path, str(path)) as image:
        opaque = "transparency" not in image.info
        grey = image.mode.startswith("I") or (image.mode in ("1", "L") and opaque)
        return 1 if grey else 3, height, width


@contextmanager
def _opened(source: Path | BinaryIO, where: str) -> Iterator[Image.Image]:
    """Open an image, and raise any error that occurs while it is open as BadImage."""
    try:
        if isinstance(source, Path):
            status = source.stat()
            # a pipe or a device could hold the program for ever
            if not stat.S_ISREG(status.st_mode):
                folder = stat.S_ISDIR(status.st_mode)
                raise BadImage(
                    where, f"not a regular file, but a {'directory' if folder else 'pipe or device'}"
                )
            if status.st_size == 0:
                raise BadImage(where, "the file is empty")
        # a file, not a path, as Pillow would map the stored pixels of a turned TIFF file in the turned size
        with (
            source.open("rb") if isinstance(source, Path) else nullcontext(source) as file,
            Image.open(file, formats=_FORMATS) as image,
        ):
            _check_shape(*image.size)
            yield image
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(where, "there is no such file") from None
    except UnidentifiedImageError:
        raise BadImage(where, f"not an image ({', '.join(_FORMATS)} are read)") from None
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly anything
        check_storage(error, where)
        reason = error.strerror if isinstance(error, OSError) else None
        raise BadImage(where, reason or str(error) or type(error).__name__) from error


def from_pil(image: Image.Image, exif: Exif = "apply") -> Tensor:
    """Convert a Pillow image to uint8, (C, H, W) with C 1 or 3, by the rules of `read_image`.

    Raises:
        ValueError: the image has floating-point pixels (mode F), no pixels, or is too long (`LONGEST`).
    """
    _check_shape(*image.size)
    pixels = torch.from_numpy(np.array(_plain(image, exif)))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def pixels_of(image: Image.Image | Path | str | Tensor, exif: Exif = "apply") -> Tensor:
    """Return one image, uint8 (C, H, W) with C 1 or 3.

    Args:
        image: a Pillow image or the path of a file, which are read by the rules of `read_image`; or a tensor,
            (C, H, W): uint8, or floating-point in [-1, 1].
        exif: as for `read_image`.

    Raises:
        BadImage: for the reasons of `read_image`.
        DiffLensError: it is none of these, or a tensor of another shape or range.
    """
    if isinstance(image, str | Path):
        return read_image(expanded(image), exif)
    if isinstance(image, Image.Image):
        try:
            return from_pil(image, exif)
        except Exception as error:  # an image that is decoded here fails as a file does
            raise BadImage(getattr(image, "filename", "") or "in memory", str(error)) from error
    if not isinstance(image, Tensor):
        raise DiffLensError(
            f"an image is a Pillow image, a path or a tensor, not {type(image).__name__}: "
            "PIL.Image.fromarray takes arrays"
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise DiffLensError(f"an image of shape {tuple(image.shape)} is not (C, H, W) with C 1 or 3")
    try:
        _check_shape(image.shape[2], image.shape[1])
    except ValueError as error:
        raise BadImage("in memory", str(error)) from error
    return image if image.dtype == torch.uint8 else to_uint8(in_range(image))


def in_range(images: Tensor) -> Tensor:
    """Return `images` if they are floating-point in [-1, 1].

    Raises:
        DiffLensError: they are not; the message says what they are.
    """
    if not images.is_floating_point():
        raise DiffLensError(f"images of {_type(images)}: they must be floating-point in [-1, 1]")
    if not images.numel():
        return images
    least, most = (float(end) for end in images.detach().aminmax())
    # a little more than 1 for rounding errors; a comparison with NaN is False
    if not (least >= -1 - 1e-3 and most <= 1 + 1e-3):
        raise DiffLensError(f"images lie in [{least:.3g}, {most:.3g}], and must lie in [-1, 1]")
    if least >= 0 and most > 0:  # pictures have dark parts
        note(
            "warning: images of a batch have no value below 0, as if they lay in [0, 1]: difflens takes "
            "[-1, 1], in which black is -1"
        )
    return images


def check_shape(images: Tensor, channels: int, taker: str) -> None:
    """Raise DiffLensError if images are not (B, C, H, W) with the channels that `taker` takes."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise DiffLensError(f"images of shape {tuple(images.shape)}: {taker} takes (B, {channels}, H, W)")


def _type(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class ImageTransform:
    """Brings images to the shape and range that a network takes, as commands do.

    Attributes:
        channels, side: the channels and the side of the result, see `fit`.
    """

    channels: int
    side: int

    def __call__(self, image: Image.Image | Path | str | Tensor) -> Tensor:
        """Return one image, float32 (channels, side, side) in [-1, 1].

        Args:
            image: as for `pixels_of`, whose errors are those of this method.
        """
        return to_float(fit(pixels_of(image), self.channels, self.side))

    def describe(self) -> str:
        """Return the steps in words."""
        colour = "grey" if self.channels == 1 else "RGB"
        return (
            f"EXIF orientation, {colour}, shorter side to {self.side} pixels, centre crop, values / 127.5 - 1"
        )


def eight_bit(image: Image.Image) -> Image.Image:
    """Return an image of 16-bit greys with 8 bits (65535 becomes 255), and any other image unchanged."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))


def _plain(image: Image.Image, exif: Exif) -> Image.Image:
    """Return an image with mode L or RGB, upright if `exif` is "apply"."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    # Pillow may hold the 16-bit greys of these formats in 32 bits
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("32-bit pixels have no defined range: store 8 or 16 bits")
    tags: dict[int, Any] = getattr(image, "tag_v2", {}) if image.mode.startswith("I") else {}  # of TIFF files
    bits = tags.get(BITSPERSAMPLE, [16])[0]
    if bits != 16:
        raise ValueError(f"{bits} bits a pixel: store 8 or 16")
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # 0 is white
    opaque = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    image = eight_bit(_turned(image, exif))
    if inverted:
        image = ImageOps.invert(image)
    if opaque:  # as many programs write BMP files of 32 bits
        image = image.convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _altered(image: Image.Image) -> str:
    """Return why Pillow will decode other values than an image of one channel was made of; "" if it does
    not."""
    assert isinstance(image, ImageFile.ImageFile), "from a file"
    if image.format == "GIF":
        return "a GIF file, whose writer numbers the values anew"
    if not image.tile:  # WebP and AVIF, which have colours
        return ""
    args: Any = image.tile[0].args
    raw, *rest = args if isinstance(args, tuple) else (args,)
    if image.format == "PPM" and raw == "1;I":
        return "a PBM file, whose value 1 is black and is read as 0"
    if image.format == "PPM" and len(rest) == 1 and rest[0] != 255:
        return f"a PGM file of the largest value {rest[0]}, and grey is scaled to 255"
    if raw in ("L;2", "L;4"):
        return f"a {image.format} file of {raw[2]} bits, and grey is scaled to 255"
    return ""


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _UNDO else 1


def _turned(image: Image.Image, exif: Exif) -> Image.Image:
    """Return an image upright by its EXIF orientation, or with `exif` "ignore" as its pixels are stored."""
    stored = _orientation(image)
    image.load()
    # Pillow itself turns the pixels of TIFF files when it loads them
    steps = _UNDO if exif == "ignore" else _TURN
    turns = stored in steps and (image.format == "TIFF") == (exif == "ignore")
    return image.transpose(steps[stored]) if turns else image


def _check_shape(width: int, height: int) -> None:
    """Raise ValueError if an image has no pixels, or is too long to be scaled."""
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise ValueError(f"it has {width} x {height} pixels")
    if longer > LONGEST * shorter:
        raise ValueError(
            f"it has {width} x {height} pixels; the longer side is at most {LONGEST} times the shorter"
        )


def fit(images: Tensor, channels: int, side: int) -> Tensor:
    """Bring images to the shape that a network takes.

    Images that are nearly large enough (`MARGIN`) are padded with black on all sides: MNIST's 28 pixels
    become 32. The shorter side of other images is resized to `side` (antialiased bicubic), and the centre is
    cropped. This is the evaluation transform of the paper.

    Args:
        images: uint8, (..., C, H, W), C 1 or 3.
        channels: 1 or 3; RGB becomes grey by ITU-R 601 luma, grey is repeated.
        side: the side of the result in pixels.

    Returns:
        uint8, (..., channels, side, side).

    Raises:
        DiffLensError: images of C channels cannot become images of `channels` channels.
    """
    images = with_channels(images, channels)
    height, width = images.shape[-2:]
    if is_padded(images, side):
        top, left = (side - height) // 2, (side - width) // 2
        return F.pad(images, (left, side - width - left, top, side - height - top))
    images = _resize(images, side)
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def stretch(images: Tensor, channels: int, side: int) -> Tensor:
    """Resize images, all of them, to a square (antialiased bicubic): no border is cropped, and proportions
    change.

    Correspondence needs every position of a picture, and DIFT (Tang et al., 2023) reads pictures so.

    Args:
        images: uint8, (..., C, H, W), C 1 or 3.
        channels, side: the channels and the side of the result, see `fit`.

    Returns:
        uint8, (..., channels, side, side).

    Raises:
        DiffLensError: images of C channels cannot become images of `channels` channels.
    """
    return _resize_to(with_channels(images, channels), (side, side))


def augment(images: Tensor, kind: Augmentation, channels: int, side: int, draws: Tensor) -> Tensor:
    """Bring images to the shape that a network takes, with the random changes of training.

    Args:
        images: uint8, (B, C, H, W), C 1 or 3.
        kind: "none" is `fit`; "flip" adds a horizontal flip with probability 1/2; "crop" is the paper's
            training transform: shorter side uniform in side .. 1.25 side, random crop, flip. With "crop",
            images that `fit` pads are shifted by at most `MARGIN` pixels, not resized.
        channels, side: the channels and the side of the result, see `fit`.
        draws: (B, 4) long from `augmentation_draws`, on the device of `images`.

    Returns:
        uint8, (B, channels, side, side).
    """
    if kind == "none":
        return fit(images, channels, side)
    if kind == "flip":
        return _random_window(fit(images, channels, side), side, draws)
    if is_padded(images, side):
        return _random_window(F.pad(fit(images, channels, side), (MARGIN,) * 4), side, draws)
    images = with_channels(images, channels)
    shorter = side + _pick(draws[:, 0], side // 4 + 1)
    result = images.new_empty(len(images), channels, side, side)
    # resize images of one drawn size together
    for size in sorted(set(shorter.tolist())):
        members = shorter == size
        result[members] = _random_window(_resize(images[members], size), side, draws[members])
    return result


def augmentation_draws(index: Tensor, seed: int, epoch: int) -> Tensor:
    """Return the random numbers of `augment`, (B, 4) long in [0, 2**32), a pure function of (seed, epoch,
    index).

    Args:
        index: (B,) long: the position of each image in its data set.
    """
    return draws(Stream.AUGMENTATION, index, seed, epoch)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Clamp images to [-1, 1] and convert them to uint8: the inverse of `to_float`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Convert uint8 images, (..., C, H, W), to `channels` channels: RGB to grey by ITU-R 601 luma, grey to
    RGB.

    Raises:
        DiffLensError: C or `channels` is neither 1 nor 3.
    """
    have = images.shape[-3]
    if have == channels:
        return images
    if (have, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, -1, -1)
    if (have, channels) == (3, 1):
        red, green, blue = images.int().unbind(-3)
        # 0.299 R + 0.587 G + 0.114 B in 16-bit fixed point: the same grey on every device
        return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).to(torch.uint8).unsqueeze(-3)
    raise DiffLensError(
        f"images of {counted(have, 'channel')} cannot become {channels}: images and networks must have 1 or 3"
    )


def is_padded(images: Tensor, side: int) -> bool:
    """Return True if `fit` pads images, (..., H, W), instead of resizing them."""
    return all(side - MARGIN <= length <= side for length in images.shape[-2:])


def _resize(images: Tensor, shorter: int) -> Tensor:
    """Resize images so that the shorter side is `shorter` (antialiased bicubic)."""
    height, width = images.shape[-2:]
    scale = shorter / min(height, width)
    return _resize_to(images, (max(shorter, round(height * scale)), max(shorter, round(width * scale))))


def _resize_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images to (height, width) (antialiased bicubic)."""
    if images.shape[-2:] == size:
        return images
    flat = images.reshape(-1, *images.shape[-3:]).float()
    resized = F.interpolate(flat, size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    return resized.reshape(*images.shape[:-2], *size)


def _random_window(images: Tensor, side: int, draws: Tensor) -> Tensor:
    """Return a random square of `side` from each image, (B, C, H, W), mirrored with probability 1/2."""
    height, width = images.shape[-2:]
    steps = torch.arange(side, device=images.device)
    rows = _pick(draws[:, 1], height - side + 1)[:, None] + steps
    columns = _pick(draws[:, 2], width - side + 1)[:, None] + steps
    columns = torch.where(_pick(draws[:, 3], 2).bool()[:, None], columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _pick(draws: Tensor, count: int) -> Tensor:
    """Return integers, uniform in 0 .. count - 1, from 32-bit words, in exact arithmetic."""
    return (draws * count) >> 32
