"""`match` end to end: two pictures whose shift is known, and pairs in SPair-71k's layout."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from difflens import DiffLensError, KeypointResult, MatchConfig, MatchResult, match, presets
from difflens.configs.options import resolve
from tests.helpers.cli import run as cli

SIDE = 64
SHIFT = (16, 8)  # pixels to the right and down


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A picture whose every pixel has a hue of its own, and the same picture shifted."""
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path, (right, down) in zip(paths, ((0, 0), SHIFT), strict=True):
        hues(SIDE, SIDE, right, down).save(path)
    return paths


def hues(width: int, height: int, right: int = 0, down: int = 0) -> Image.Image:
    """Red grows to the right and green downwards; moved pixels leave their hue behind at the border."""
    x = (torch.arange(width) - right).clamp(min=0) * 255 // (width - 1)
    y = (torch.arange(height) - down).clamp(min=0) * 255 // (height - 1)
    blue = torch.full((height, width), 255)
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width), blue], dim=-1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def config(out: Path, pictures: tuple[Path, ...], /, **changes: Any) -> MatchConfig:
    base = MatchConfig(out=out, pictures=pictures, backbone="pixels:3x16", device="cpu")
    return replace(base, **changes)


def test_points_are_found_where_the_picture_was_shifted_to(
    pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    run = config(tmp_path / "run", pictures, points=("5,6", "30,17.5"))
    result = match(run)
    assert isinstance(result, MatchResult)
    assert [each.point for each in result.matches] == [(5, 6), (30, 17.5)]
    for each in result.matches:
        assert each.match == pytest.approx((each.point[0] + SHIFT[0], each.point[1] + SHIFT[1]), abs=2)
        assert each.score > 0.99
        assert each.mutual
        assert each.returned == pytest.approx(each.point, abs=2)
    stored = json.loads((run.out / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result.metrics()))
    assert stored["sizes"] == [[SIDE, SIDE], [SIDE, SIDE]]
    assert Image.open(run.out / "match.png").width > 1000
    assert "Matches back" in (run.out / "report.html").read_text()


def test_without_points_a_grid_is_searched_and_matches_that_return_are_kept(
    pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    found = match(config(tmp_path / "grid", pictures, grid=4, estimate="soft-argmax", window=1.0))
    assert isinstance(found, MatchResult)
    assert 8 <= len(found.matches) <= 16
    assert all(each.mutual for each in found.matches)


def test_noise_draws_and_side_on_a_diffusion_network(
    backbone_folder: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    run = config(tmp_path / "a", pictures, backbone=str(backbone_folder), block=8, noise_step=10)
    twice = (pictures[0], pictures[0])
    same = config(tmp_path / "b", twice, backbone=str(backbone_folder), block=1, noise_step=0)
    several = replace(run, out=tmp_path / "draws", draws=3)
    one, many, fine = (match(replace(each, grid=4)) for each in (run, several, replace(same, side=32)))
    assert isinstance(one, MatchResult)
    assert isinstance(many, MatchResult)
    assert isinstance(fine, MatchResult)
    assert (one.block, one.noise_step) == (8, 10)
    assert [each.score for each in one.matches] != [each.score for each in many.matches]
    assert len(fine.matches) >= 10  # of 16 points
    for each in fine.matches:
        assert each.match == pytest.approx(each.point, abs=8)


def test_a_long_picture_is_read_as_a_whole(tmp_path: Path) -> None:
    """The last pixels of a long picture correspond too: nothing is cropped."""
    hues(128, 32).save(tmp_path / "a.png")
    pair = (tmp_path / "a.png", tmp_path / "a.png")
    result = match(config(tmp_path / "run", pair, points=("125,29", "2,2"), backbone="pixels:3x32"))
    assert isinstance(result, MatchResult)
    for each in result.matches:
        assert each.match == pytest.approx(each.point, abs=4)


def annotation(**changes: Any) -> dict[str, Any]:
    points = [[5, 6], [30, 17], [40, 40]]
    return {
        "filename": "000000-a-b:cat",
        "src_imname": "a.png",
        "trg_imname": "b.png",
        "src_imsize": [SIDE, SIDE, 3],
        "trg_imsize": [SIDE, SIDE, 3],
        "src_bndbox": [0, 0, 50, 50],
        "trg_bndbox": [16, 8, 46, 28],
        "category": "cat",
        "src_kps": points,
        # the last true point is 5 pixels off: within 0.1 of the image's side, not of the box's
        "trg_kps": [[x + SHIFT[0], y + SHIFT[1] + 5 * (k == 2)] for k, (x, y) in enumerate(points)],
        "kps_ids": ["0", "1", "2"],
        **changes,
    }


@pytest.fixture
def spair(pictures: tuple[Path, Path], tmp_path: Path) -> Path:
    root = tmp_path / "SPair"
    for label in ("cat", "dog"):
        (root / "JPEGImages" / label).mkdir(parents=True)
        for path in pictures:
            (root / "JPEGImages" / label / path.name).write_bytes(path.read_bytes())
    (root / "PairAnnotation" / "test").mkdir(parents=True)
    write(root, "0", annotation())
    write(root, "1", annotation(category="dog", src_kps=[[5, 6]], trg_kps=[[5, 6]]))
    write(root, "2", annotation(category="dog", src_kps=[[9, 9]], trg_kps=[[9 + SHIFT[0], 9 + SHIFT[1]]]))
    return root


def write(root: Path, name: str, content: dict[str, Any]) -> None:
    (root / "PairAnnotation" / "test" / f"{name}.json").write_text(json.dumps(content))


def test_keypoints_of_pairs_are_counted_by_box_and_image(spair: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", (), data=spair)
    result = match(run)
    assert isinstance(result, KeypointResult)
    cat, dog = result.classes["cat"], result.classes["dog"]
    assert (cat.pairs, cat.points, cat.box, cat.image) == (1, 3, pytest.approx(2 / 3), 1)
    assert (dog.pairs, dog.points, dog.box, dog.image) == (2, 2, 0.5, 0.5)
    overall = result.overall
    assert (overall.pairs, overall.points) == (3, 5)
    assert (overall.box, overall.image) == (pytest.approx(3 / 5), pytest.approx(4 / 5))
    assert overall.box_by_pair == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert overall.image_by_pair == pytest.approx((1 + 0 + 1) / 3)
    rows = list(csv.DictReader((run.out / "pairs.csv").open()))
    assert [(row["pair"], row["points"], row["box"]) for row in rows] == [
        ("0", "3", "2"),
        ("1", "1", "0"),
        ("2", "1", "1"),
    ]
    assert "PCK@0.1" in result.summary()
    drawn = match(replace(run, out=tmp_path / "few", limit=1, alpha=0.5))
    assert isinstance(drawn, KeypointResult)
    assert drawn.overall.pairs == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src_kps": [[1, 2]]}, "hold 1 and 3 points"),
        ({"trg_imname": "../b.png"}, "no plain name"),
        ({"trg_bndbox": [9, 9, 9, 12]}, "trg_bndbox is"),
        ({"trg_imsize": [32, 64, 3]}, "is 64 x 64 pixels, not 32 x 64"),
        ({"src_kps": [[1, 2], [3, 4], [65, 4]]}, "lies outside"),
        ({"src_kps": [[1, 2], [3, 4], [5, "x"]]}, r"src_kps\[2\]"),
        ({"trg_imname": "missing.png"}, "there is no such file"),
    ],
)
def test_wrong_annotations_name_the_file(
    spair: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(spair, "1", annotation(**changes))
    with pytest.raises(DiffLensError, match=message):
        match(config(tmp_path / "run", (), data=spair))
    assert not (tmp_path / "run").exists()


def test_what_cannot_work_says_so(
    pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = pictures
    words = ("--backbone", "pixels:3x16", "--out", tmp_path / "run")
    for given, message in (
        ((a,), "match reads two pictures, and 1 are given"),
        ((a, b, "--points", "1;2"), "expected x,y in pixels, such as 120,80"),
        ((a, b, "--points", "1,64"), "y from 0 to 63"),
        ((a, b, "--points", "nan,4"), "outside"),
        ((a, tmp_path / "none.png"), "there is no such file"),
        ((a, b, "--alpha", 0.2), "leave out --alpha"),
        ((a, b, "--temperature", 0.2), "leave out --temperature"),
        ((a, b, "--preset", "dift"), "there are dift-semantic, dift-geometric, dift-temporal"),
        ((a, b, "--preset", "dift-semantic"), "no block 24"),
        (("--data", tmp_path), "has no pairs of the split test"),
    ):
        assert cli("match", *given, *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_presets_are_places_of_dift_in_our_numbering() -> None:
    """DIFT counts the blocks of ADM-256's decoder from 0; ours begins at block 20."""
    assert {name: recipe["block"] - 20 for name, recipe in presets.MATCH.items()} == {
        "dift-semantic": 4,
        "dift-geometric": 11,
        "dift-temporal": 7,
    }
    found = resolve(MatchConfig(out=Path("x"), pictures=(Path("a"), Path("b")), preset="dift-semantic"))
    assert (found.block, found.noise_step, found.draws, found.side) == (24, 101, 8, 512)
    changed = resolve(replace(found, block=20))
    assert (changed.block, changed.noise_step) == (20, 101)
