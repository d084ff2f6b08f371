"""`generate` end to end: the same files after any stop, for any n, from one or two processes; the grid."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image

from difflens import DiffLensError, GenerateConfig, cli, generate, load_backbone, sample
from difflens.data.images import read_image, to_uint8
from difflens.generation import generate as generation
from difflens.generation.grid import image_grid
from tests.helpers.families import write_unet
from tests.helpers.files import contents
from tests.helpers.networks import bigan
from tests.helpers.processes import run_two


def config(out: Path, backbone: Path, /, **changes: object) -> GenerateConfig:
    base = GenerateConfig(
        out=out, n=7, backbone=str(backbone), sampler="ddpm", steps=3, batch_size=3, device="cpu"
    )
    return replace(base, **changes)


def images(out: Path) -> torch.Tensor:
    """Return the images of a run, (N, C, H, W) uint8."""
    return torch.stack([read_image(path) for path in sorted((out / "images").iterdir())])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "DIR"
    line = f"generate --backbone fashion -n 8 --steps 10 --batch-size 3 --seed 1 --out {out}"
    cli.main(line.split())
    assert "8 images (ddim, 10 steps)" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"config.yaml", "grid.png", "images", "metrics.json"}
    assert json.loads((out / "metrics.json").read_text()) == {"images": 8, "sampler": "ddim", "steps": 10}
    assert Image.open(out / "images" / "000007.png").mode == "L"
    assert Image.open(out / "grid.png").size == (3 * 33 - 1, 3 * 33 - 1)
    drawn = images(out)
    assert drawn.shape == (8, 1, 32, 32)
    # another batch size changes the last bits, which seldom change a rounded pixel
    difference = (drawn.int() - to_uint8(sample(load_backbone("fashion"), 8, 10, seed=1)).int()).abs()
    assert difference.max() <= 1
    assert difference.bool().float().mean() < 0.01


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_the_batch_size_changes_last_bits_only(backbone_folder: Path, tmp_path: Path, sampler: str) -> None:
    one = config(tmp_path / "one", backbone_folder, sampler=sampler)
    other = replace(one, out=tmp_path / "other", batch_size=4)
    result = generate(one)
    assert result.images_per_second > 0
    assert result.metrics() == {"images": 7, "sampler": sampler, "steps": 3}
    generate(other)
    difference = (images(one.out).int() - images(other.out).int()).abs()
    assert difference.max() <= 1
    assert difference.bool().float().mean() < 0.01


def test_a_run_grows(backbone_folder: Path, tmp_path: Path) -> None:
    whole = config(tmp_path / "whole", backbone_folder)
    generate(whole)
    few = replace(whole, out=tmp_path / "few", n=2)
    generate(few)
    expected = contents(whole.out)
    assert [expected[f"images/00000{k}.png"] for k in (0, 1)] == [
        (few.out / f"images/00000{k}.png").read_bytes() for k in (0, 1)
    ]
    generate(replace(few, n=7, resume=True))
    assert contents(few.out) == expected
    with pytest.raises(DiffLensError, match="-n must be at least 7, not 6"):
        generate(replace(few, n=6, resume=True))
    assert contents(few.out) == expected


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resuming_after_any_image_ends_with_the_same_files(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = config(tmp_path / "whole", backbone_folder)
    generate(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    write, written = generation.replace_with, []

    def until(path: Path, *rest: object) -> None:
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "replace_with", until)
        with pytest.raises(KeyboardInterrupt):
            generate(stopped)
    assert len([*(stopped.out / "images").iterdir()]) == stop
    (stopped.out / "images" / f".{stop:06d}.partial.png").write_bytes(b"half an ima")
    times = {path: path.stat().st_mtime_ns for path in written}
    generate(replace(stopped, resume=True))
    assert contents(stopped.out) == contents(whole.out)
    assert {path: path.stat().st_mtime_ns for path in written} == times


def test_a_run_keeps_the_scheduler_that_it_began_with(tmp_path: Path) -> None:
    """The fingerprint of the features does not show it."""
    folder = write_unet(tmp_path / "net", DDIMScheduler())
    run = config(tmp_path / "run", folder, n=1, sampler="ddim", steps=1, batch_size=1)
    generate(run)
    more = replace(run, n=2, resume=True)
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder)
    with pytest.raises(DiffLensError, match="holds another run: scheduler_fingerprint was"):
        generate(more)
    # an earlier version recorded no fingerprint
    stored = run.out / "config.yaml"
    stored.write_text(re.sub("scheduler_fingerprint: .*\n", "", stored.read_text()))
    assert generate(more).images == 2
    assert generate(replace(more, n=3)).images == 3
    assert "scheduler_fingerprint" not in stored.read_text()


def test_two_processes_write_what_one_writes(backbone_folder: Path, tmp_path: Path) -> None:
    one = config(tmp_path / "one", backbone_folder)
    generate(one)
    options = ("-n", 7, "--sampler", "ddpm", "--steps", 3, "--batch-size", 3, "--device", "cpu")
    run_two("generate", "--backbone", backbone_folder, *options, "--out", tmp_path / "two")
    assert contents(tmp_path / "two") == contents(one.out)


def test_large_images_come_a_few_at_a_time(backbone_folder: Path, tmp_path: Path) -> None:
    for side, size in ((16, 64), (48, 42), (4096, 1)):
        run = config(tmp_path / str(side), backbone_folder, batch_size=None, image_size=side, n=1, steps=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation._Generation, "run_all", lambda self: {"size": self.size})
            assert generate(run) == {"size": size}


def test_a_lower_precision_draws_nearly_the_same(backbone_folder: Path, tmp_path: Path) -> None:
    full = config(tmp_path / "full", backbone_folder, sampler="ddim")
    generate(full)
    half = replace(full, out=tmp_path / "half", precision="bfloat16")
    generate(half)
    difference = (images(full.out).int() - images(half.out).int()).abs().float()
    assert 0 < difference.mean() < 4


def test_a_disk_that_fills_up_loses_nothing(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path / "run", backbone_folder)
    write = generation.replace_with

    def full(path: Path, *rest: object) -> None:
        if path.name == "000004.png":
            raise OSError(28, "No space left on device")
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "replace_with", full)
        with pytest.raises(
            DiffLensError, match=r"000004\.png cannot be written: No space left.* --resume goes on"
        ):
            generate(run)
    assert not (run.out / "metrics.json").exists()
    assert generate(replace(run, resume=True)).images == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0; it must be between 1"),
        ({"n": -3}, "n is -3"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 101}, "101 sampling steps: the schedule allows 1 to 100"),
        ({"eta": 0.5}, "eta is 0.5, and ddpm has none"),
        ({"sampler": "ddim", "eta": -0.1}, "eta is -0.1; it must be between 0 and 1"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"backbone": "pixels"}, "cannot generate: it is no diffusion network"),
        ({"backbone": "nothing"}, "no backbone 'nothing'"),
        ({"image_size": 15}, "image side 15 is not a multiple"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so_and_leaves_nothing(
    backbone_folder: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        generate(config(tmp_path / "run", backbone_folder, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("channels", "out_channels", "bias", "message"),
    [
        (2, 2, 0.0, "takes 2 channels, which are latents"),
        (1, 3, 0.0, "takes 1 channel and gives 3: that is no prediction for x_t"),
        (1, 1, torch.nan, "images that are not finite: check its weights"),
    ],
)
def test_networks_that_make_no_images(
    tmp_path: Path, channels: int, out_channels: int, bias: float, message: str
) -> None:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels,
        block_out_channels=(8,),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    torch.nn.init.constant_(unet.conv_out.bias, bias)
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(DiffLensError, match=message):
        generate(config(tmp_path / "run", tmp_path / "unet"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 4}, "steps was 3, now 4"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"batch_size": 2}, "batch_size was 3, now 2"),
        ({"sampler": "ddim"}, "sampler was 'ddpm', now 'ddim'"),
        ({"backbone": "random:fashion"}, "backbone_fingerprint was"),
    ],
    ids=str,
)
def test_images_of_something_else_are_refused_unharmed(
    backbone_folder: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    first = config(tmp_path / "run", backbone_folder, n=1)
    generate(first)
    before = contents(first.out)
    with pytest.raises(DiffLensError, match=message):
        generate(replace(first, resume=True, **changes))
    with pytest.raises(DiffLensError, match="already holds a run"):
        generate(replace(first, **changes))
    assert contents(first.out) == before


def test_the_grid_shows_the_first_images(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "GRID_IMAGES", 4)
    run = config(tmp_path / "run", backbone_folder, n=6)
    generate(run)
    grid = read_image(run.out / "grid.png")
    assert grid.shape == (3, 33, 33)
    assert torch.equal(grid[:, 17:, 17:], images(run.out)[3])


def test_grid() -> None:
    shades = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 4, 6)
    grid = image_grid(shades, columns=3, gap=1)
    assert grid.size == (3 * 7 - 1, 2 * 5 - 1)
    assert [grid.getpixel(position) for position in ((0, 0), (7, 0), (6, 0), (19, 8))] == [0, 64, 255, 255]


def test_a_generator_without_steps(tmp_path: Path) -> None:
    folder = tmp_path / "bigan"
    folder.mkdir()
    bigan().save(folder)
    run = config(tmp_path / "run", folder, n=2, sampler=None, steps=None)
    generate(run)
    # earlier versions took this word, and left it without effect
    result = generate(replace(run, n=7, resume=True, sampler="ddim"))
    assert result.metrics() == {"images": 7, "sampler": "one pass", "steps": 1}
    expected = to_uint8(sample(load_backbone(str(folder)), 7))
    assert (images(run.out).int() - expected.int()).abs().max() <= 1
    for changes, message in (
        ({"steps": 20}, "in one pass"),
        ({"sampler": "ddim"}, "in one pass"),
        ({"image_size": 32}, "draws images of side 16 alone: leave out --image-size 32"),
    ):
        with pytest.raises(DiffLensError, match=message):
            generate(replace(run, out=tmp_path / "other", **changes))
    assert not (tmp_path / "other").exists()
