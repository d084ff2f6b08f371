"""What a network's shape does to images is said in one line, from headers."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens import PredictConfig, ProbeConfig, predict, probe
from difflens.data.changes import changes, say_changes
from difflens.data.images import image_shape, read_image
from difflens.data.split import FileSplit, ImageSplit, JoinedSplit, LibrarySplit, MemorySplit
from difflens.run.console import note
from tests.helpers.images import make_image_tree


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    note.cache_clear()


def saved(folder: Path, *images: Image.Image) -> ImageSplit:
    for k, image in enumerate(images):
        image.save(folder / f"{k}.png")
    return FileSplit("images", [f"{k}.png" for k in range(len(images))], root=folder)


@pytest.mark.parametrize(
    ("modes", "side", "channels", "network", "expected"),
    [
        (["RGB", "L"], 32, 1, 32, "colours become grey"),
        (["L", "L"], 32, 3, 32, "grey is repeated in three channels"),
        (["RGB", "RGB"], 32, 3, 32, ""),
        (["L", "L"], 64, 1, 32, ""),
        (["L", "L"], 65, 1, 32, "images shrink from about 65 to 32 pixels on the shorter side"),
        (["L", "L"], 16, 1, 32, ""),
        (["L", "L"], 15, 1, 32, "images grow from about 15 to 32 pixels on the shorter side"),
        (["RGB", "RGB"], 99, 1, 32, "colours become grey; images shrink from about 99"),
    ],
)
def test_colours_and_sizes(
    modes: list[str], side: int, channels: int, network: int, expected: str, tmp_path: Path
) -> None:
    split = saved(tmp_path, *(Image.new(mode, (2 * side, side)) for mode in modes))
    found = changes(split, channels, network)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_images_that_are_read_whole_are_measured_by_their_longer_side(tmp_path: Path) -> None:
    split = saved(tmp_path, Image.new("RGB", (100, 50)))
    assert changes(split, 3, 40, whole=True) == "images shrink from about 100 to 40 pixels on the longer side"
    assert changes(split, 3, 40) == changes(split, 3, 60, whole=True) == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_a_header_tells_the_shape_that_is_read(
    mode: str, turned: bool, transparent: bool, tmp_path: Path
) -> None:
    image = Image.new(mode, (5, 3))
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    options = {"transparency": 0} if transparent and mode in ("1", "L", "P", "RGB") else {}
    if turned and path.suffix == ".png":
        exif = image.getexif()
        exif[0x0112] = 6
        options["exif"] = exif
    if mode == "RGB" and transparent:
        options["transparency"] = (0, 0, 0)
    image.save(path, **options)
    assert image_shape(path) == tuple(read_image(path).shape)


def test_every_kind_of_split(tmp_path: Path) -> None:
    memory = MemorySplit("train", torch.zeros(3, 3, 80, 90, dtype=torch.uint8))
    library = LibrarySplit("train", [(Image.new("RGB", (90, 80)),)] * 3, 0)
    joined = JoinedSplit("train", [memory, library])
    for split in (memory, library, joined, joined.subset(torch.tensor([1, 4]))):
        assert split.shape(0) == (3, 80, 90)
        assert changes(split, 1, 32).startswith("colours become grey; images shrink from about 80")


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    split = saved(tmp_path, Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32)))
    (tmp_path / "0.png").write_bytes(b"not an image")
    assert changes(split, 1, 32) == "colours become grey"
    (tmp_path / "1.png").unlink()
    assert changes(split, 1, 32) == ""


def test_a_line_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = saved(tmp_path, Image.new("RGB", (32, 32)))
    for _ in range(2):
        say_changes(split, "fashion", 1, 32)
    assert capsys.readouterr().err == "fashion reads 1 x 32 x 32: colours become grey\n"


def test_photographs_on_the_grey_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A probe says it and its report repeats it; a prediction says it too."""
    tree = make_image_tree(tmp_path / "images", per_class=2, side=80)
    line = "fashion reads 1 x 32 x 32: colours become grey; images shrink from about 80 to 32"
    common = {"backbone": "fashion", "data": str(tree), "device": "cpu"}
    probe(ProbeConfig(out=tmp_path / "run", head="knn", workers=0, **common))
    error = capsys.readouterr().err
    assert error.count(line) == 1
    assert "colours become grey" in (tmp_path / "run" / "report.html").read_text()
    note.cache_clear()
    predict(PredictConfig(model=tmp_path / "run", images=(tree / "val",), device="cpu"))
    assert line in capsys.readouterr().err
