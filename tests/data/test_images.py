import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from difflens.data.images import (
    BadImage,
    StorageError,
    augment,
    augmentation_draws,
    fit,
    from_pil,
    image_size,
    is_image,
    open_image,
    open_picture,
    orientation,
    read_image,
    to_float,
    to_uint8,
)
from difflens.data.loader import iterate
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def photo(side: int = 64) -> Image.Image:
    pixels = F.interpolate(noise(1, 3, 8, 8).float(), side, mode="bicubic").clamp(0, 255)[0]
    return Image.fromarray(pixels.permute(1, 2, 0).byte().numpy())


# --- decoding ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_rgb_formats_are_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path)
    assert torch.equal(read_image(path), torch.from_numpy(RGB).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("P", "png", 3),
        ("P", "gif", 3),
        ("RGBA", "png", 3),
        ("LA", "png", 3),
        ("CMYK", "jpg", 3),
        ("L", "jpg", 1),
        ("RGB", "jpg", 3),
        ("YCbCr", "jpg", 3),
        ("RGB", "webp", 3),
        ("L", "pgm", 1),
        ("1", "pbm", 1),
        ("I;16", "png", 1),
        ("I;16", "tif", 1),
    ],
)
def test_every_mode_becomes_one_or_three_channels(
    tmp_path: Path, mode: str, suffix: str, channels: int
) -> None:
    path = tmp_path / f"image.{suffix}"
    source = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB)
    (source if mode == "I;16" else source.convert(mode)).save(path)
    image = read_image(path)
    assert image.shape == (channels, 6, 9)
    assert image.dtype == torch.uint8


def test_a_phone_photo_with_a_second_picture_gives_the_first(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(
        tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4), "white")]
    )
    assert read_image(tmp_path / "photo.jpg").max() == 0


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png").tolist() == [[[0, 1, 255, 128]]]


def test_black_and_white_is_0_and_255() -> None:
    assert from_pil(Image.fromarray(np.array([[True, False]]))).tolist() == [[[255, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_black(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (200, 200, 200, 255))
    image.putalpha(Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)))
    image.convert(mode).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png")[:, 0].tolist() == [[0, 100, 200]] * 3


def test_a_transparent_palette_colour_is_black(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png")[:, 0].T.tolist() == [[0, 0, 0], [40, 50, 60]]


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_is_applied_or_ignored(tmp_path: Path, value: int, suffix: str, mode: str) -> None:
    path, pixels = tmp_path / f"photo.{suffix}", RGB if mode == "RGB" else RGB[..., 0]
    upright = Image.fromarray(pixels.astype(np.uint16) * 257 if mode == "I;16" else pixels)
    if suffix == "webp":
        upright = upright.convert("RGB")
    stored = upright.transpose(UNDO[value]) if value in UNDO else upright
    exif = Image.Exif()
    exif[0x0112] = value
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert orientation(path) == value
    for rule, expected in (("apply", upright), ("ignore", stored)):
        assert torch.equal(read_image(path, rule), from_pil(expected))  # type: ignore[arg-type]
        assert image_size(path, rule) == (expected.height, expected.width)  # type: ignore[arg-type]
        assert open_image(path, rule).size == expected.size  # type: ignore[arg-type]
    assert open_picture(path).size == upright.size


def test_a_photo_is_turned_whatever_its_other_exif_tags_hold(tmp_path: Path) -> None:
    upright, exif = Image.fromarray(RGB), Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(UNDO[6])
    stored.save(tmp_path / "photo.png", exif=exif)
    image = Image.open(tmp_path / "photo.png")
    image.getexif()[0x0131] = 5.5  # the program's name as a number, which Pillow cannot write
    assert torch.equal(from_pil(image), from_pil(upright))


@pytest.mark.parametrize("photometric", [0, 1])
def test_sixteen_bit_tiff_files_say_whether_0_is_white(tmp_path: Path, photometric: int) -> None:
    path, pixels = tmp_path / "scan.tif", RGB[..., 0]
    stored = pixels if photometric else 255 - pixels
    Image.fromarray(stored.astype(np.uint16) * 257).save(path, tiffinfo={262: photometric})
    assert torch.equal(read_image(path), torch.from_numpy(pixels)[None])


def test_alpha_of_a_bmp_file_that_is_0_everywhere_means_nothing(tmp_path: Path) -> None:
    blue_first = np.concatenate([RGB[::-1, :, ::-1], np.zeros((6, 9, 1), np.uint8)], 2).tobytes()
    # a header of version 4: 32 bits, and masks for red, green, blue and alpha
    header = struct.pack("<IiiHHIIiiII", 108, 9, 6, 1, 32, 3, len(blue_first), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    start = struct.pack("<IHHI", 14 + len(header) + len(blue_first), 0, 0, 14 + len(header))
    (tmp_path / "window.bmp").write_bytes(b"BM" + start + header + blue_first)
    assert torch.equal(read_image(tmp_path / "window.bmp"), torch.from_numpy(RGB).permute(2, 0, 1))


def test_storage_that_fails_leaves_no_image_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path in paths:
        photo().save(path)
    split, opened = FileSplit("train", [path.name for path in paths], root=tmp_path), Path.open

    def fail(path: Path, *rest: Any, **options: Any) -> Any:
        if path.name == "1.png":
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *rest, **options)

    monkeypatch.setattr(Path, "open", fail)
    for workers in (0, 2):
        batches = iterate(
            split, channels=3, side=64, batch_size=2, workers=workers, on_bad_image="skip", bad=[]
        )
        with pytest.raises(StorageError, match=r"1\.png: Too many open files; this is no fault of the image"):
            list(batches)


def test_pictures_for_scenes_are_converted_as_images_are(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535, 32896]], np.uint16)).save(tmp_path / "wide.png")
    Image.new("RGBA", (2, 1), (200, 100, 50, 128)).save(tmp_path / "clear.png")
    for name in ("wide", "clear"):
        picture = open_picture(tmp_path / f"{name}.png")
        assert torch.equal(from_pil(picture), read_image(tmp_path / f"{name}.png"))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "JPG"])
def test_further_suffixes(tmp_path: Path, suffix: str) -> None:
    photo().save(tmp_path / f"photo.{suffix}", "AVIF" if suffix == "avif" else "JPEG")
    assert read_image(tmp_path / f"photo.{suffix}").shape == (3, 64, 64)


# --- bad images ---


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("truncated.jpg", encoded("jpeg")[:-600], "truncated"),
        ("truncated.png", encoded("png")[:-600], ""),
        ("corrupt.png", encoded("png")[:300] + bytes(200) + encoded("png")[500:], ""),
        ("text.png", b"<html>404</html>", "not an image"),
        ("empty.png", b"", "empty"),
        ("header.png", encoded("png")[:20], ""),
        ("vector.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_a_damaged_file_is_named_with_a_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.reason
    assert reason in caught.value.reason


def test_a_missing_file_a_folder_and_a_float_image_are_bad_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "wide.tif")
    for path, reason in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "directory"),
        (tmp_path / "float.tif", "floating-point"),
        (tmp_path / "wide.tif", "32-bit pixels have no defined range"),
    ):
        with pytest.raises(BadImage, match=reason):
            read_image(path)


@pytest.mark.parametrize(("width", "height"), [(1, 1_000_000), (5_000, 1), (101, 2)])
def test_a_picture_that_is_too_long_is_refused_before_it_is_decoded(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "long.png"
    Image.new("L", (width, height)).save(path)
    for read in (read_image, open_image, open_picture, image_size):
        with pytest.raises(
            BadImage, match=f"it has {width} x {height} pixels; the longer side is at most 50"
        ):
            read(path)
    with pytest.raises(ValueError, match="the longer side"):
        from_pil(Image.new("L", (width, height)))


def test_a_picture_without_pixels_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "none.gif").write_bytes(b"GIF89a" + bytes(7) + b",\0\0\0\0" + bytes(5) + b"\x02\0;")
    with pytest.raises(BadImage):
        read_image(tmp_path / "none.gif")
    with pytest.raises(ValueError, match="0 x 3 pixels"):
        from_pil(Image.new("L", (0, 3)))


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(BadImage, match="not a regular file, but a pipe or device"):
            read_image(path)
        assert not is_image(path)


def test_a_decompression_bomb_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="decompression bomb"):
        read_image(tmp_path / "bomb.png")


# --- fit ---


@settings(max_examples=60, deadline=None)
@given(
    have=st.sampled_from([1, 3]),
    want=st.sampled_from([1, 3]),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    side=st.integers(1, 40),
    batch=st.sampled_from([(), (2,), (2, 1)]),
)
def test_fit_gives_the_shape_asked_for(
    have: int, want: int, height: int, width: int, side: int, batch: tuple[int, ...]
) -> None:
    images = noise(*batch, have, height, width)
    fitted = fit(images, want, side)
    assert fitted.shape == (*batch, want, side, side)
    assert fitted.dtype == torch.uint8
    if batch:
        assert torch.equal(fitted[0], fit(images[0], want, side))


def test_fit_pads_what_is_nearly_large_enough_with_black() -> None:
    image = noise(1, 28, 28)
    fitted = fit(image, 1, 32)
    assert torch.equal(fitted[:, 2:30, 2:30], image)
    assert fitted.long().sum() == image.long().sum()
    assert torch.equal(fit(image, 1, 28), image)


def test_fit_resizes_the_shorter_side_and_crops_the_centre() -> None:
    stripes = torch.zeros(3, 20, 60, dtype=torch.uint8)
    stripes[:, :, 20:40] = 255
    assert (fit(stripes, 3, 10) > 240).float().mean() > 0.75
    # a constant image does not change, and overshoot is clamped, not wrapped
    assert (fit(torch.full((1, 27, 27), 255, dtype=torch.uint8), 1, 32) == 255).all()
    checks = (torch.arange(20)[:, None] // 5 + torch.arange(20) // 5) % 2 * 255
    assert (fit(checks[None].byte(), 1, 40)[0, 2:8, 2:8] < 30).all()


def test_fit_agrees_with_pillow() -> None:
    image = photo(50)
    with_pillow = from_pil(image.resize((20, 20), Image.Resampling.BICUBIC)).int()
    assert (fit(from_pil(image), 3, 20).int() - with_pillow).abs().max() <= 2


def test_grey_is_repeated_and_rgb_becomes_luma() -> None:
    grey = noise(1, 8, 8)
    assert torch.equal(fit(fit(grey, 3, 8), 1, 8), grey)
    image = Image.fromarray(RGB[:6, :6])
    assert torch.equal(fit(from_pil(image), 1, 6), from_pil(image.convert("L")))


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(DiffLensError, match="3 channels cannot become 4"):
        fit(noise(3, 8, 8), 4, 8)


# --- augmentation ---


@pytest.mark.parametrize("kind", ["none", "flip", "crop"])
@pytest.mark.parametrize("size", [(28, 28), (32, 30), (40, 60), (9, 9)])
def test_augmentation_is_a_function_of_seed_epoch_and_index(kind: str, size: tuple[int, int]) -> None:
    images, index = noise(6, 3, *size), torch.tensor([5, 0, 17, 3, 2, 900])
    draws = augmentation_draws(index, seed=3, epoch=2)
    together = augment(images, kind, 1, 32, draws)
    assert together.shape == (6, 1, 32, 32)
    for i in range(6):
        alone = augment(images[i : i + 1], kind, 1, 32, augmentation_draws(index[i : i + 1], seed=3, epoch=2))
        assert torch.equal(together[i], alone[0])
    again = augment(images, kind, 1, 32, augmentation_draws(index, seed=3, epoch=3))
    assert torch.equal(together, again) == (kind == "none")


def test_flip_mirrors_half_of_the_images() -> None:
    image = noise(1, 1, 8, 8)
    draws = augmentation_draws(torch.arange(400), seed=0, epoch=0)
    flipped = augment(image.expand(400, -1, -1, -1), "flip", 1, 8, draws)
    mirrored = (flipped == image.flip(-1)).flatten(1).all(1)
    kept = (flipped == image).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 150 < int(mirrored.sum()) < 250


def test_crop_shifts_padded_images_and_scales_large_ones() -> None:
    draws = augmentation_draws(torch.arange(300), seed=0, epoch=0)
    dot = torch.zeros(300, 1, 32, 32, dtype=torch.uint8)
    dot[:, :, 16, 15:17] = 255  # symmetric under a flip
    rows, columns = augment(dot, "crop", 1, 32, draws)[:, 0].nonzero()[::2, 1:].T
    assert set(rows.tolist()) == set(range(12, 21))
    assert set(columns.tolist()) == set(range(11, 20))
    # in a ramp as wide as the image, a crop of side / 1.25 spans at least 1 / 1.25 of the range
    ramp = torch.linspace(0, 255, 64).round().byte().expand(300, 1, 64, 64)
    cropped = augment(ramp, "crop", 1, 32, draws).int()
    span = (cropped[:, 0, 16, -1] - cropped[:, 0, 16, 0]).abs()
    assert span.min() >= 190
    assert span.max() >= 245
    assert len(span.unique()) > 5


# --- ranges ---


def test_to_float_and_back_are_exact() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(images)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats), images)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
