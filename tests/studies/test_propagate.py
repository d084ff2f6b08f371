"""`propagate` end to end on squares that move, in DAVIS' layout and as single folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from difflens import DiffLensError, PropagateConfig, presets, propagate
from difflens.configs.options import resolve
from difflens.data.dense.masks import read_mask
from difflens.data.sequences import load_sequences
from difflens.studies.propagate import to_mask
from tests.helpers.cli import run as cli

FRAMES = 5


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two sequences of 5 frames, 64 x 48: a red and a green square that move, on bluish noise."""
    root = tmp_path / "DAVIS"
    for name, step in (("slow", 1), ("quick", 3)):
        frames, masks = root / "JPEGImages" / name, root / "Annotations" / name
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        generator = torch.Generator().manual_seed(step)
        for number in range(FRAMES):
            pixels = torch.randint(0, 40, (48, 64, 3), generator=generator).to(torch.uint8)
            pixels[..., 2] += 150
            mask = torch.zeros(48, 64, dtype=torch.uint8)
            for value, (left, top) in ((1, (4 + step * number, 6)), (2, (40 - step * number, 28))):
                place = (slice(top, top + 12), slice(left, left + 14))
                pixels[place] = torch.tensor(
                    [230, 20, 30] if value == 1 else [20, 220, 40], dtype=torch.uint8
                )
                mask[place] = value
            Image.fromarray(pixels.numpy()).save(frames / f"{number:05}.png")
            Image.fromarray(mask.numpy()).save(masks / f"{number:05}.png")
    (root / "val.txt").write_text("quick\n")
    return root


def config(out: Path, root: Path, /, **changes: Any) -> PropagateConfig:
    base = PropagateConfig(
        out=out,
        frames=root / "JPEGImages",
        masks=root / "Annotations",
        backbone="pixels:3x32",
        device="cpu",
    )
    return replace(base, **changes)


def test_masks_follow_objects_and_are_measured(davis: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", davis)
    result = propagate(run)
    assert list(result.sequences) == ["quick", "slow"]
    for name, found in result.sequences.items():
        assert (found.frames, found.measured, list(found.objects)) == (FRAMES, FRAMES - 1, ["1", "2"])
        for score in found.objects.values():
            assert score.j > 0.7, name
            assert 0 < score.f <= 1
    last = read_mask(run.out / "masks" / "quick" / "00004.png")
    true = read_mask(davis / "Annotations" / "quick" / "00004.png")
    assert last.shape == true.shape == (48, 64)
    assert np.mean(last == true) > 0.93
    still = read_mask(davis / "Annotations" / "quick" / "00000.png")
    assert np.mean(last == true) > np.mean(still == true)
    # the first mask is the one that was given
    assert np.array_equal(read_mask(run.out / "masks" / "quick" / "00000.png"), still)
    stored = json.loads((run.out / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result.metrics()))
    scores = [score.j for each in result.sequences.values() for score in each.objects.values()]
    assert stored["overall"]["j"] == pytest.approx(sum(scores) / 4)
    assert "J&amp;F" in (run.out / "report.html").read_text()
    again = propagate(replace(run, out=tmp_path / "again", sequences=davis / "val.txt", score_last=False))
    assert [each.measured for each in again.sequences.values()] == [FRAMES - 2]


def test_the_first_mask_of_one_folder_is_enough(davis: Path, backbone_folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "first"
    masks.mkdir()
    shutil.copy(davis / "Annotations" / "slow" / "00000.png", masks)
    options = {"block": 9, "noise_step": 3, "side": 32, "context": 2, "neighbours": 3, "radius": 6}
    run = config(tmp_path / "run", davis, frames=davis / "JPEGImages" / "slow", masks=masks)
    result = propagate(replace(run, backbone=str(backbone_folder), **options))
    assert result.overall is None
    assert len([*(run.out / "masks" / "slow").iterdir()]) == FRAMES
    assert {*np.unique(read_mask(run.out / "masks" / "slow" / "00003.png"))} <= {0, 1, 2}
    assert "slow" in result.summary()


def test_pixels_without_a_label_are_neither_carried_nor_measured(davis: Path, tmp_path: Path) -> None:
    folder = davis / "Annotations" / "slow"
    for path in folder.iterdir():
        mask = read_mask(path)
        mask[mask == 2] = 255
        Image.fromarray(mask).save(path)
    slow = config(tmp_path / "run", davis, frames=davis / "JPEGImages" / "slow", masks=folder)
    result = propagate(slow)
    assert list(result.sequences["slow"].objects) == ["1"]
    assert result.sequences["slow"].objects["1"].j > 0.7
    assert {*np.unique(read_mask(slow.out / "masks" / "slow" / "00004.png"))} == {0, 1}


def test_what_cannot_work_says_so(davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, masks = davis / "JPEGImages", davis / "Annotations"
    (tmp_path / "list.txt").write_text("fast\n")
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(frames / "slow" / "00000.png", one)
    Image.new("L", (20, 20)).save(masks / "quick" / "00002.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ("--backbone", "pixels:3x32", "--out", tmp_path / "run")
    for given, message in (
        (("--frames", tmp_path / "none", "--masks", masks), "no such folder"),
        (("--frames", frames, "--masks", masks), "00002.png is 20 x 20 pixels, the first frame 64 x 48"),
        (("--frames", one, "--masks", masks / "slow"), "one has one frame"),
        (("--frames", frames / "slow", "--masks", one / "x"), "no such folder"),
        (("--frames", frames / "slow", "--masks", empty), "no images in"),
        (
            ("--frames", frames, "--masks", masks, "--sequences", tmp_path / "list.txt"),
            "names 'fast', and there is no such folder",
        ),
        (("--frames", frames, "--masks", masks, "--preset", "dift"), "there are dift-temporal"),
        (("--frames", frames, "--masks", masks, "--radius", "-1"), "radius is -1"),
    ):
        assert cli("propagate", *given, *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    (masks / "slow" / "00000.png").unlink()
    with pytest.raises(DiffLensError, match=r"has no mask of the first frame, 00000\.png"):
        propagate(config(tmp_path / "run", davis, frames=frames / "slow", masks=masks / "slow"))


def test_shares_are_stretched_before_they_are_compared() -> None:
    """Otherwise an object that is small beside its cells is lost to the background."""
    shares = torch.zeros(3, 8, 8)
    shares[0], shares[:2, 3, 3:5] = 1, torch.tensor([[0.55], [0.45]])
    assert shares.argmax(0).sum() == 0
    found = to_mask(shares, [0, 4, 7], (64, 64))
    assert {*np.unique(found)} == {0, 4}
    assert (found[26:30, 26:38] == 4).all()
    # shares that are the same everywhere, but for rounding
    shares = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    shares[1, ::2] -= 1e-7
    assert (to_mask(shares, [0, 4], (64, 64)) == 4).all()


def test_frames_are_in_the_order_of_their_numbers(davis: Path, tmp_path: Path) -> None:
    """Names without leading zeros, as ffmpeg gives them, and 12 frames."""
    for kind in ("frames", "masks"):
        source = davis / {"frames": "JPEGImages", "masks": "Annotations"}[kind] / "slow"
        (tmp_path / kind).mkdir()
        for number in range(12 if kind == "frames" else 1):
            name = f"{min(number, FRAMES - 1):05}.png"
            shutil.copy(source / name, tmp_path / kind / f"frame {number + 1}.png")
    found = load_sequences(tmp_path / "frames", tmp_path / "masks").sequences[0]
    assert [path.stem for path in found.frames] == [f"frame {number}" for number in range(1, 13)]
    assert [*found.masks] == [0]


@pytest.mark.parametrize("other", [0, 255])
def test_a_first_mask_without_an_object_is_refused(davis: Path, tmp_path: Path, other: int) -> None:
    """Also one of 0 and 255, as binary masks have; and before the sequences that come first are read."""
    first = davis / "Annotations" / "slow" / "00000.png"
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = other
    Image.fromarray(mask).save(first)
    with pytest.raises(DiffLensError, match=r"slow shows no object: its value.* 0.*Number objects from 1"):
        propagate(config(tmp_path / "run", davis))
    assert not (tmp_path / "run" / "masks").exists()


def test_a_first_mask_without_a_label_is_refused(davis: Path, backbone_folder: Path, tmp_path: Path) -> None:
    frames, masks = tmp_path / "frames", tmp_path / "masks"
    for folder in (frames, masks):
        folder.mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32)).save(frames / f"{number}.png")
    Image.new("L", (32, 32), 255).save(masks / "0.png")
    asked = PropagateConfig(
        frames=frames, masks=masks, backbone=str(backbone_folder), out=tmp_path / "run", device="cpu"
    )
    with pytest.raises(DiffLensError, match="shows no object: its value is 255"):
        propagate(asked)


def test_two_frames_of_one_name_are_refused(davis: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("0.jpg", "0.png", "1.png"):
        Image.new("RGB", (32, 32)).save(frames / name)
    (tmp_path / "masks").mkdir()
    Image.new("P", (32, 32)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(DiffLensError, match="has two frames of the name 0"):
        load_sequences(frames, tmp_path / "masks")


def test_the_preset_is_difts_protocol() -> None:
    found = resolve(PropagateConfig(out=Path("x"), frames=Path("f"), masks=Path("m"), preset="dift-temporal"))
    assert (found.block, found.noise_step, found.draws) == (27, 51, 4)
    assert (found.context, found.neighbours, found.radius) == (28, 10, 15)
    assert presets.PROPAGATE["dift-temporal"].items() >= presets.MATCH["dift-temporal"].items()
