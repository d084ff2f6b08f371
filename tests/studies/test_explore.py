"""`explore` end to end: the page is moved over in a browser, and its pixels are compared with features."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from difflens import (
    DiffLensError,
    ExploreConfig,
    FrozenExtractor,
    SweepConfig,
    explore,
    load_backbone,
    sweep,
)
from difflens.data.images import fit, read_image, to_float
from difflens.metrics.projection import project
from difflens.reports.explore import MapOfPlace, explore_page
from difflens.studies.explore import _BYTES, PAGE, _shown, spread
from tests.helpers.browser import driven
from tests.helpers.html import HOSTILE, Document

BLOCKS, STEPS, SIDE = (2, 5, 8), (3, 40), 16
DESKTOP = {"viewport": {"width": 1600, "height": 900}}
PHONE = {"viewport": {"width": 400, "height": 800}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colour pictures of soft patches."""
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(3):
        small = torch.randint(0, 256, (5, 5, 3), generator=torch.Generator().manual_seed(k)).to(torch.uint8)
        Image.fromarray(small.numpy()).resize((40, 48), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def config(out: Path, backbone: Path | str, pictures: Path, /, **changes: Any) -> ExploreConfig:
    base = ExploreConfig(
        out=out,
        backbone=str(backbone),
        images=(pictures,),
        blocks=BLOCKS,
        noise_steps=STEPS,
        device="cpu",
        workers=0,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("explored") / "run"
    result = explore(config(out, backbone_folder, pictures))
    assert result.agreement >= 0.98
    assert result.bytes == (out / "explore.html").stat().st_size
    assert json.loads((out / "metrics.json").read_text())["images"] == list(result.images)
    return out / "explore.html"


def cosines(
    backbone: Path, pictures: Path, place: tuple[int, int], query: tuple[int, int, int]
) -> np.ndarray:
    """Exact cosines, (3, H, W), of the position `query` (picture, row, column) with all positions."""
    images = torch.stack([fit(read_image(pictures / f"{k}.png"), 3, SIDE) for k in range(3)])
    maps = FrozenExtractor(load_backbone(str(backbone)), (place[0],), (place[1],))(
        to_float(images), torch.arange(3)
    )
    unit = torch.nn.functional.normalize(maps[place], dim=1)
    picture, row, column = query
    return torch.einsum("c,nchw->nhw", unit[picture, :, row, column], unit).numpy()


def drawn(page: Any) -> list[str]:
    """What the page shows, once it stands still: block, level, picture, column, row, background."""
    page.wait_for_selector("body[data-drawn]")  # a function would be evaluated, which the page forbids
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
    return str(page.evaluate("document.body.dataset.drawn")).split()


def brightness(page: Any, number: int, side: int) -> np.ndarray:
    """The luma at the centre of each cell of a picture on the screen, (side, side)."""
    shot = Image.open(io.BytesIO(page.locator("canvas").nth(number).screenshot())).convert("L")
    centres = (np.arange(side) + 0.5) / side
    rows, columns = (centres * shot.height).astype(int), (centres * shot.width).astype(int)
    return np.asarray(shot, dtype=float)[np.ix_(rows, columns)]


def test_pixels_under_the_pointer_order_positions_as_features_do(
    page: Path, backbone_folder: Path, pictures: Path
) -> None:
    with driven(page, **DESKTOP) as shown:
        shown.check("input[value=nothing]")
        for level, block, query in ((0, 0, (0, 3, 12)), (1, 2, (2, 9, 1)), (1, 1, (1, 2, 5))):
            shown.locator("#block").fill(str(block))
            shown.locator("#level").fill(str(level))
            side = SIDE if BLOCKS[block] != 5 else SIDE // 2
            picture, row, column = query
            canvas = shown.locator("canvas").nth(picture)
            box = canvas.bounding_box()
            x, y = ((k + 0.5) / side * box["width"] for k in (column, row))
            canvas.hover(position={"x": x, "y": y})
            assert drawn(shown) == [*map(str, (block, level, picture, column, row)), "nothing"]
            seen = np.stack([brightness(shown, k, side) for k in range(3)])
            place = (BLOCKS[block], STEPS[level])
            exact = cosines(backbone_folder, pictures, place, query)
            assert spearmanr(seen.ravel(), exact.ravel()).statistic >= 0.98, place
            best = exact[(picture + 1) % 3].max()
            caption = shown.locator("figcaption").nth((picture + 1) % 3).inner_text()
            assert float(caption.split()[-1]) == pytest.approx(best, abs=0.03)


def test_keyboard_and_a_held_position(page: Path) -> None:
    with driven(page, **DESKTOP) as shown:
        shown.locator("canvas").nth(1).focus()
        start = drawn(shown)
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowDown")
        moved = drawn(shown)
        assert [int(moved[k]) - int(start[k]) for k in (3, 4)] == [1, 1]
        assert moved[2] == "1"
        shown.keyboard.press("Enter")
        shown.locator("canvas").nth(2).hover(position={"x": 5, "y": 5})
        assert drawn(shown)[2:5] == moved[2:5]
        assert "held" in shown.inner_text("#status")
        shown.keyboard.press("Escape")
        shown.locator("canvas").nth(2).hover(position={"x": 9, "y": 9})
        assert drawn(shown)[2] == "2"
        shown.locator("#level").focus()
        before = int(drawn(shown)[1])
        shown.keyboard.press("ArrowRight" if before == 0 else "ArrowLeft")
        assert drawn(shown)[1] == str(1 - before)
        # a click holds, and another one releases
        shown.locator("canvas").nth(0).click(position={"x": 30, "y": 30})
        shown.locator("canvas").nth(1).hover(position={"x": 9, "y": 9})
        assert drawn(shown)[2] == "0"


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_touch_on_a_narrow_screen_in_light_and_dark(page: Path, scheme: str, dark: bool) -> None:
    with driven(page, **PHONE, has_touch=True, color_scheme=scheme) as shown:
        drawn(shown)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 400
        canvas = shown.locator("canvas").nth(1)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        shown.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
        found = drawn(shown)
        side = SIDE // 2 if BLOCKS[int(found[0])] == 5 else SIDE
        assert found[2:5] == ["1", *[str(int(0.9 * side))] * 2]
        ground = Image.open(io.BytesIO(shown.screenshot())).convert("L").getpixel((2, 2))
        assert (ground < 60) == dark
        # components have other colours than similarity
        colours = [canvas.screenshot()]
        for choice in ("components", "nothing"):
            shown.check(f"input[value={choice}]")
            drawn(shown)
            colours.append(canvas.screenshot())
        assert len({*colours}) == 3


def test_a_cell_of_a_sweep_shows_its_place(
    backbone_folder: Path, pictures: Path, image_tree: Path, tmp_path: Path
) -> None:
    swept = SweepConfig(
        out=tmp_path / "sweep",
        backbone=str(backbone_folder),
        data=str(image_tree),
        blocks=(5, 6, 8),
        noise_steps=(3, 40),
        device="cpu",
        workers=0,
    )
    shares = 100 * sweep(swept).accuracy["ridge"]
    run = config(tmp_path / "run", backbone_folder, pictures, blocks=None, noise_steps=None, sweep=swept.out)
    result = explore(run)
    assert (result.blocks, result.noise_steps) == ((5, 6, 8), (3, 40))
    explore(replace(run, out=tmp_path / "few", blocks=(6,)))
    with driven(run.out / "explore.html", **PHONE) as shown:
        drawn(shown)
        ends = [f"{round(float(end), 1):g} %" for end in (shares.min(), shares.max())]
        assert shown.locator("#sweep .scale span").all_inner_texts() == ends
        shown.get_by_label("block 8, t = 40").click()
        assert drawn(shown)[:2] == ["2", "1"]
        assert shown.locator("#heat button[aria-pressed=true]").count() == 1
        assert shown.evaluate("document.documentElement.scrollWidth") <= 400
    with driven(tmp_path / "few" / "explore.html", **PHONE) as shown:
        drawn(shown)
        assert shown.locator("#heat button:disabled").count() == 4
    with pytest.raises(DiffLensError, match="a sweep of another backbone than pixels:3x16"):
        explore(replace(run, out=tmp_path / "other", backbone="pixels:3x16"))
    with pytest.raises(DiffLensError, match="is a run of explore; --sweep takes one of sweep"):
        explore(replace(run, out=tmp_path / "other", sweep=run.out))
    assert not (tmp_path / "other").exists()


def test_a_page_of_usual_size_stays_under_15_megabytes() -> None:
    """12 pictures, 6 blocks and 6 levels of vectors that have no structure to make use of."""
    vectors = torch.randn(12 * 24 * 24, 64, generator=torch.Generator().manual_seed(0))
    place = MapOfPlace(24, project(vectors, _BYTES // len(vectors)))
    blocks, log_snr = dict.fromkeys(range(1, 7), "decoder"), dict.fromkeys(range(6), 1.0)
    noise = torch.randint(0, 256, (3, 256, 256), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    page = explore_page(
        title="x",
        lead="x",
        pictures=[("noise", noise)] * 12,
        blocks=blocks,
        log_snr=log_snr,
        places={(block, t): place for block in blocks for t in log_snr},
        start=(1, 0),
        sweep=None,
        provenance={},
    )
    assert 8e6 < len(page.encode()) < 15e6


def test_names_stay_words_and_nothing_is_loaded(page: Path) -> None:
    vectors = MapOfPlace(2, project(torch.eye(4), 4))
    text = explore_page(
        title=HOSTILE,
        lead=HOSTILE,
        pictures=[(HOSTILE, torch.zeros(1, 8, 8, dtype=torch.uint8))],
        blocks={1: HOSTILE},
        log_snr={0: float("inf")},
        places={(1, 0): vectors},
        start=(1, 0),
        sweep=None,
        provenance={HOSTILE: HOSTILE},
    )
    assert text.count("<script") == 2
    assert "alert(1)</script>" not in text
    for name in ("src", "href"):
        for value in Document(page.read_text()).values(name):
            assert value.startswith("data:")


def test_places_are_spread_evenly_around_the_wanted_one() -> None:
    assert spread([1, 2, 3], 2) == [1, 2, 3]
    assert spread(list(range(1, 26)), 18) == [1, 6, 11, 15, 18, 25]


def test_of_many_pictures_some_are_shown_evenly(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    album = tmp_path / "album"
    for kind in ("car", "sky"):
        (album / kind).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (16, 16), (30 * k, 90, 200)).save(album / kind / f"{k}.png")
    run = config(tmp_path / "run", backbone_folder, album, count=4)
    explore(run)
    assert "4 pictures of 8, evenly over their order; --count shows more" in capsys.readouterr().err
    shown = re.findall(r'"name":"([^"]+)"', (run.out / PAGE).read_text())
    assert shown == ["car/0.png", "car/2.png", "sky/1.png", "sky/3.png"]


def test_what_cannot_work_says_so(backbone_folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", backbone_folder, pictures)
    (tmp_path / "bad.png").write_bytes(b"?")
    for changes, message in (
        ({"images": (tmp_path / "none",)}, "no such file or folder"),
        ({"images": (tmp_path / "bad.png",)}, "cannot read image"),
        ({"images": (tmp_path / "bad.png",), "on_bad_image": "skip"}, "none of the images can be read"),
        ({"blocks": (10,)}, "no block 10"),
        ({"cells": 1}, "cells is 1"),
        ({"sweep": tmp_path}, "is no run directory; --sweep takes that of a sweep"),
    ):
        with pytest.raises(DiffLensError, match=message):
            explore(replace(run, **changes))
        assert not run.out.exists()


def test_a_picture_is_shown_with_the_border_that_the_network_sees() -> None:
    picture = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    shown = _shown(picture, 32)
    side = shown.shape[-1]
    edge = side * 2 // 32
    assert shown[0, : edge // 2].max() < 30
    assert shown[0, 2 * edge : -2 * edge, 2 * edge : -2 * edge].min() > 240
    assert torch.equal(_shown(picture, 64), fit(picture, 1, side))
