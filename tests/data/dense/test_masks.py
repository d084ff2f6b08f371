"""The readers of semantic masks on a miniature of each layout, and their messages about bad masks."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflens import DiffLensError
from difflens.data.copies import copies
from difflens.data.dense.masks import (
    VOC_CLASSES,
    class_palette,
    load_masks,
    load_pairs,
    palette,
    read_mask,
    to_palette_image,
)
from difflens.reports.overlays import mask_overlay


def save(path: Path, values: list[list[int]], kind: str = "mask") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(values, np.uint8)
    (to_palette_image(pixels) if kind == "mask" else Image.fromarray(pixels)).save(path)


def ade20k(root: Path) -> Path:
    for split in ("training", "validation"):
        save(root / "images" / split / "ADE_1.jpg", [[0, 50], [90, 200]], "image")
        save(root / "annotations" / split / "ADE_1.png", [[0, 1], [2, 2]])
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.1\t1\t1\t1\twall, house wall\n2\t.1\t1\t1\t0\tbuilding\n"
    )
    return root


def voc(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_2"):
        save(home / "JPEGImages" / f"{name}.jpg", [[0, 50], [90, 200]], "image")
        save(home / "SegmentationClass" / f"{name}.png", [[0, 20], [255, 3]])
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    return root


def pairs(root: Path) -> Path:
    for split in ("train", "val"):
        for k in range(3):
            save(root / "images" / split / "deep" / f"{k}.jpg", [[0, 50, 1], [90, 200, 1]], "image")
            save(root / "masks" / split / "deep" / f"{k}.png", [[0, 1, 255], [k, 0, 0]])
    (root / "classes.txt").write_text("ground\ntree\nhouse\n\n")
    return root


@pytest.mark.parametrize(
    ("layout", "classes", "sizes", "mask"),
    [
        (ade20k, ("wall", "building"), (1, 1), [[255, 0], [1, 1]]),
        (voc, VOC_CLASSES, (1, 1), [[0, 20], [255, 3]]),
        (pairs, ("ground", "tree", "house"), (3, 3), [[0, 1, 255], [0, 0, 0]]),
    ],
)
def test_a_miniature_of_each_layout(
    layout: Callable[[Path], Path],
    classes: tuple[str, ...],
    sizes: tuple[int, int],
    mask: list[list[int]],
    tmp_path: Path,
) -> None:
    data = load_masks(layout(tmp_path / "mini"))
    assert data.classes == classes
    assert (len(data.train), len(data.val)) == sizes
    assert data.train.mask(0).tolist() == mask
    assert data.train.image(0).shape[1:] == data.train.mask(0).shape
    assert not data.bad


def test_any_two_folders(tmp_path: Path) -> None:
    root = pairs(tmp_path / "mini")
    folders = [(root / "images" / split, root / "masks" / split) for split in ("train", "val")]
    data = load_pairs(folders[0], folders[1], root / "classes.txt")
    assert data.fingerprint() == load_masks(root).fingerprint()
    save(root / "masks" / "train" / "deep" / "1.png", [[0, 0, 0], [0, 0, 0]])
    assert data.fingerprint() != load_masks(root).fingerprint()


def spoil_size(root: Path) -> None:
    save(root / "masks" / "train" / "deep" / "1.png", [[0, 1], [0, 0]])


def spoil_value(root: Path) -> None:
    save(root / "masks" / "train" / "deep" / "1.png", [[0, 1, 3], [9, 0, 0]])


def spoil_mode(root: Path) -> None:
    Image.new("RGB", (3, 2)).save(root / "masks" / "train" / "deep" / "1.png")


def spoil_missing(root: Path) -> None:
    (root / "masks" / "train" / "deep" / "1.png").unlink()


def spoil_image(root: Path) -> None:
    (root / "images" / "train" / "deep" / "1.jpg").unlink()


def spoil_bytes(root: Path) -> None:
    (root / "masks" / "train" / "deep" / "1.png").write_bytes(b"?")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, "1.png: is 2 x 2 pixels, its image .*1.jpg 3 x 2"),
        (spoil_value, "1.png: has the class id 3, 9, of 3 classes"),
        (spoil_mode, "1.png: cannot be read .*one byte a pixel"),
        (spoil_missing, "1.jpg: .*train has no mask of this name"),
        (spoil_image, "1.png: .*train has no image of this name"),
        (spoil_bytes, "1.png: cannot be read"),
    ],
)
def test_a_bad_mask_is_named_or_skipped_and_counted(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    root = pairs(tmp_path / "mini")
    spoil(root)
    with pytest.raises(DiffLensError, match=message):
        load_masks(root)
    data = load_masks(root, "skip")
    assert len(data.bad) == 1
    assert len(data.train) == 2
    assert [Path(name).stem for name in data.train.ids] == ["0", "2"]


def test_files_that_change_the_values_of_masks_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0]], np.uint8)
    grey = Image.fromarray(values)
    grey.save(tmp_path / "a.gif")
    Image.fromarray(values > 0).save(tmp_path / "a.pbm")
    (tmp_path / "plain.pbm").write_text("P1\n2 2\n0 1 1 0")
    (tmp_path / "a.pgm").write_bytes(b"P5\n2 2\n3\n" + values.tobytes())
    (tmp_path / "plain.pgm").write_text("P2\n2 2\n3\n0 1 1 0")
    for bits in (2, 4):
        rows = [bytes([0, *(int(row[0]) << 8 - bits | int(row[1]) << 8 - 2 * bits,)]) for row in values]
        (tmp_path / f"{bits}.png").write_bytes(png(2, 2, bits, b"".join(rows)))
    for name, message in (
        ("a.gif", "a GIF file, whose writer"),
        ("a.pbm", "a PBM file, whose value 1 is black"),
        ("plain.pbm", "a PBM file"),
        ("a.pgm", "a PGM file of the largest value 3"),
        ("plain.pgm", "a PGM file of the largest value 3"),
        ("2.png", "a PNG file of 2 bits"),
        ("4.png", "a PNG file of 4 bits"),
    ):
        with pytest.raises(DiffLensError, match=f"{name}: .*{message}.* save it as 8-bit PNG"):
            read_mask(tmp_path / name)
    # these keep them
    Image.fromarray(values > 0).save(tmp_path / "1.png")
    for name in ("8.png", "b.pgm", "a.tif", "a.bmp"):
        grey.save(tmp_path / name)
    few = to_palette_image(values)
    few.putpalette([0, 0, 0, 255, 0, 0])
    few.save(tmp_path / "few.png")  # in one bit a pixel
    (tmp_path / "plain.pgm").write_text("P2\n2 2\n255\n0 1 1 0")
    for name in ("1.png", "8.png", "b.pgm", "plain.pgm", "a.tif", "a.bmp", "few.png"):
        assert np.array_equal(read_mask(tmp_path / name), values), name


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """A grey PNG of `bits` bits a pixel; each row begins with 0."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(x)) + k + x + struct.pack(">I", zlib.crc32(k + x)) for k, x in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def two(root: Path, values: list[list[int]], classes: str = "ground\ntree\n") -> Path:
    """Two pairs whose masks hold `values`."""
    for split in ("train", "val"):
        save(root / "images" / split / "0.png", [[0] * len(row) for row in values], "image")
        save(root / "masks" / split / "0.png", values)
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return root


def test_masks_of_0_and_255_are_refused_by_their_values(tmp_path: Path) -> None:
    message = (
        "the train masks of mini show the class ground alone: their values are 0, 255, of which 255 are "
        "ignored. The values of classes are 0, 1, and --ignore names the values of no class"
    )
    with pytest.raises(DiffLensError, match=message):
        load_masks(two(tmp_path / "mini", [[0, 255]]))
    with pytest.raises(DiffLensError, match="show no class: their values are 255"):
        load_masks(two(tmp_path / "void", [[255, 255]]))
    with pytest.raises(DiffLensError, match="has the class id 255, of 2 classes"):
        load_masks(two(tmp_path / "mini", [[0, 255]]), ignore=())


def test_images_of_both_splits_are_named(tmp_path: Path) -> None:
    root = two(tmp_path / "mini", [[0, 1]])
    pair, other = ((root / "images" / split, root / "masks" / split) for split in ("train", "val"))
    save(root / "images" / "val" / "0.png", [[9, 9]], "image")
    data = load_pairs(pair, other, root / "classes.txt")
    assert copies(data.train, data.val) == ""
    data = load_pairs(pair, pair, root / "classes.txt")
    (image,) = (root / "images" / "train").iterdir()
    said = f"copies of training images: 1 of 1 val image; the first is {image.name}, of {image.name}"
    assert copies(data.train, data.val) == said


def test_classes_that_do_not_occur_are_named(tmp_path: Path) -> None:
    root = two(tmp_path / "mini", [[0, 1, 2]], "ground\ntree\nhouse\nsea\n")
    save(root / "masks" / "val" / "0.png", [[0, 255, 0]])
    assert load_masks(root).notes == (
        "classes without a pixel in the train masks: sea",
        "classes without a pixel in the val masks: tree, house, sea",
    )
    save(root / "masks" / "val" / "0.png", [[255, 255, 255]])
    with pytest.raises(DiffLensError, match="the val masks of mini show no class"):
        load_masks(root)


@pytest.mark.parametrize("classes", ["sky\nroad\ncar\n", "sky\nroad\nvoid\ncar\n"])
def test_values_of_no_class_can_be_named(tmp_path: Path, classes: str) -> None:
    """CamVid's way: the void has the number behind the last class, or a line of its own."""
    named = "void" in classes
    root = two(tmp_path / "mini", [[0, 1, 3, 2], [0, 0, 0, 0]], classes)
    data = load_masks(root, ignore=(2 if named else 3,))
    assert data.classes == ("sky", "road", "car")
    assert data.train.mask(0).tolist() == [[0, 1, 2, 255] if named else [0, 1, 255, 2], [0] * 4]
    assert data.notes == ()
    with pytest.raises(DiffLensError, match="has the class id 255"):
        load_masks(two(tmp_path / "other", [[0, 1, 255]], classes), ignore=(2,))
    with pytest.raises(DiffLensError, match="classes, 1 without the ignored values; masks hold 2 to 254"):
        load_masks(root, ignore=(1, 2, 3) if named else (1, 2))


def test_a_class_of_a_value_that_masks_cannot_hold_is_refused(tmp_path: Path) -> None:
    many = two(tmp_path / "mini", [[0, 1]], "".join(f"class {value}\n" for value in range(300)))
    with pytest.raises(DiffLensError, match="'class 299' has the value 299; masks hold 0 to 255"):
        load_masks(many, ignore=range(2, 200))


def test_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    root = ade20k(tmp_path / "mini")
    info = root / "objectInfo150.txt"
    info.write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t.1\t1\t1\t1\tscreen, door\n2\t.1\t1\t1\t0\tscreen\n"
    )
    data = load_masks(root)
    assert data.classes == ("screen (1)", "screen (2)")
    info.write_text(info.read_text().replace("\n2\t", "\n3\t"))
    with pytest.raises(DiffLensError, match=r"objectInfo150\.txt, line 3: the class has Idx 2, not '3'"):
        load_masks(root)


def test_a_list_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    root = two(tmp_path / "mini", [[0, 1]], "\ufeffground\r\ntree\r\n\r\n")
    assert load_masks(root).classes == ("ground", "tree")


def turn(path: Path, value: int, name: str) -> None:
    """Give an image an EXIF orientation, under a new name; its stored pixels stay."""
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.fromarray(np.asarray(Image.open(path)))
    path.unlink()
    image.save(path.with_name(name), exif=exif)


@pytest.mark.parametrize("name", ["0.png", "0.tif"])
def test_labels_of_a_turned_photograph(tmp_path: Path, name: str) -> None:
    root = two(tmp_path / "mini", [[0, 1, 0]])  # drawn on the stored pixels, 3 x 1
    turn(root / "images" / "train" / "0.png", 6, name)
    message = (
        rf"masks/train/0.png: is 3 x 1 pixels, its image .*{name} 1 x 3; its EXIF orientation turns it, and "
        "the size is that of its pixels as they are stored: give --exif ignore"
    )
    with pytest.raises(DiffLensError, match=message):
        load_masks(root)
    stored = load_masks(root, exif="ignore")
    assert stored.train.image(0).shape[1:] == stored.train.mask(0).shape == (1, 3)
    assert stored.notes[0].startswith("images with an EXIF orientation: 1, read as stored")
    save(root / "masks" / "train" / "0.png", [[0], [1], [0]])  # drawn on the upright image
    upright = load_masks(root)
    assert upright.train.image(0).shape[1:] == upright.train.mask(0).shape == (3, 1)
    assert upright.notes[0].startswith("images with an EXIF orientation: 1, turned upright")
    with pytest.raises(DiffLensError, match="that of the upright image: give --exif apply"):
        load_masks(root, exif="ignore")


def test_two_masks_of_one_name(tmp_path: Path) -> None:
    root = two(tmp_path / "mini", [[0, 1]])
    Image.open(root / "masks" / "train" / "0.png").save(root / "masks" / "train" / "0.bmp")
    with pytest.raises(DiffLensError, match=r"0\.png: .*0\.bmp is a mask of this name already"):
        load_masks(root)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "no layout of masks"),
        (lambda root: (pairs(root) / "classes.txt").unlink(), "there is no .*classes.txt"),
        (lambda root: (pairs(root) / "classes.txt").write_text("a\na\n"), "names a twice"),
        (lambda root: (pairs(root) / "classes.txt").write_text("a\n\nb\n"), "line 2: the line is blank"),
        (lambda root: (pairs(root) / "classes.txt").write_text("a\n"), "names 1 class; masks hold 2"),
        (lambda root: (pairs(root) / "classes.txt").write_bytes(b"caf\xe9\nb\n"), "not a text file in UTF-8"),
        (lambda root: (ade20k(root) / "objectInfo150.txt").write_text("Idx\n"), "names no classes"),
    ],
)
def test_a_folder_that_is_no_data_set(
    prepare: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    prepare(tmp_path / "mini")
    with pytest.raises(DiffLensError, match=message):
        load_masks(tmp_path / "mini", "skip")


def test_no_mask_left(tmp_path: Path) -> None:
    root = pairs(tmp_path / "mini")
    for path in (root / "masks" / "val" / "deep").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(DiffLensError, match="no val images"):
        load_masks(root, "skip")


def test_the_colours_are_pascal_vocs() -> None:
    # background, aeroplane, bicycle, tvmonitor, and the border
    assert palette()[[0, 1, 2, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_one_palette_for_masks_overlays_and_legends() -> None:
    """A background is black; without one the first class has a colour of its own."""
    assert class_palette(("background", "car"))[[0, 1]].tolist() == palette()[[0, 1]].tolist()
    classes = ("sky", "car")
    colours = class_palette(classes)
    assert colours[[0, 1]].tolist() == palette()[[1, 2]].tolist()
    mask = np.zeros((400, 400), np.uint8)
    mask[:, 200:] = 1
    written = to_palette_image(mask, classes)
    assert np.array_equal(np.asarray(written), mask)
    assert np.array_equal(np.asarray(written.convert("RGB"))[0, [0, 399]], colours[[0, 1]])
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    drawn = np.asarray(mask_overlay(image, torch.from_numpy(mask), classes))
    assert np.array_equal(drawn[0, [0, 399]], (0.75 * colours[[0, 1]]).round().astype(np.uint8))
