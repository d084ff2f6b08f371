"""Which bundled backbone a command reads where --backbone is left out."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from difflens import DiffusionBackbone, ProbeConfig, load_backbone, probe
from difflens.backbones import load
from difflens.backbones.maps import pool_to
from difflens.data.changes import channels_of
from difflens.data.split import FileSplit
from difflens.extractors.frozen import FrozenExtractor
from difflens.generation.samplers import sample
from difflens.metrics.classifiers import held_out_scores
from difflens.noise import seeded_noise
from difflens.run.console import note
from tests.helpers.cli import run
from tests.helpers.images import make_image_tree


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    note.cache_clear()


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A colour backbone of 16 pixels beside the bundled ones; its name."""
    assets = tmp_path / "assets"
    assets.mkdir()
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(assets / "colours")
    (assets / "fashion").symlink_to(load.bundled_folder("fashion"))
    monkeypatch.setattr(load, "_ASSETS", assets)
    monkeypatch.setattr(load, "BUNDLED", ("fashion", "colours"))
    return "colours"


def grey_tree(root: Path) -> Path:
    for path in make_image_tree(root).rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return root


def probe_command(data: Path, out: Path) -> list[object]:
    return ["probe", "--data", data, "--head", "linear", "--epochs", 1, "--device", "cpu", "--out", out]


def test_channels_of_a_split(tmp_path: Path) -> None:
    for k, mode in enumerate(["L", "L", "RGB"]):
        Image.new(mode, (4, 4)).save(tmp_path / f"{k}.png")
    names = [f"{k}.png" for k in range(3)]
    assert channels_of(FileSplit("images", names, root=tmp_path)) == 3
    assert channels_of(FileSplit("images", names[:2], root=tmp_path)) == 1


def test_the_bundled_network_has_the_channels_of_the_images(
    colours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = {"colours": make_image_tree(tmp_path / "rgb"), "fashion": grey_tree(tmp_path / "grey")}
    for name, tree in trees.items():
        assert run(*probe_command(tree, tmp_path / f"run-{name}")) == 0
        assert f"backbone: {name}, the bundled network for images in " in capsys.readouterr().err
        assert yaml.safe_load((tmp_path / f"run-{name}" / "config.yaml").read_text())["backbone"] == name
    assert load_backbone(colours).in_channels == 3


def test_without_a_network_in_colour_the_grey_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "BUNDLED", ("fashion",))
    assert run(*probe_command(make_image_tree(tmp_path / "rgb"), tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert "backbone: fashion; no network for images in colour is bundled" in said
    assert "fashion reads 1 x 32 x 32: colours become grey" in said


def test_a_named_backbone_is_read(
    colours: str, backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_image_tree(tmp_path / "rgb")
    options = ProbeConfig(
        data=str(tree), backbone=str(backbone_folder), head="linear", epochs=1, out=tmp_path / "run"
    )
    assert probe(options).model.backbone.spec == str(backbone_folder)
    assert "backbone:" not in capsys.readouterr().err


def test_the_demo_takes_photographs(colours: str, tmp_path: Path) -> None:
    tree = make_image_tree(tmp_path / "rgb")
    short = ["--effort", "0.1", "--samples", "2", "--sampling-steps", "2", "--device", "cpu"]
    assert run("demo", "--data", f"folder:{tree}", *short, "--out", tmp_path / "demo") == 0
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["test_images"] == 15
    report = (tmp_path / "demo" / "report.html").read_text()
    assert "diffusion network (colours)" in report
    assert "fashion" not in report.lower()


@torch.no_grad()
def test_the_network_of_photographs_denoises_and_recognises() -> None:
    """Its own samples are the pictures. Their rotation by 0, 90, 180 or 270 degrees is the label."""
    backbone, generated = load_backbone("photos"), 125
    assert isinstance(backbone, DiffusionBackbone)
    pictures, index = sample(backbone, generated, 8), torch.arange(generated)
    level = backbone.process.at(0.3)
    noise = seeded_noise(tuple(pictures.shape[1:]), index, level, seed=0)
    predicted = backbone.denoise(backbone.add_noise(pictures, level, noise), level)
    assert (predicted - noise).square().mean() < 0.3 * noise.square().mean()
    turned = torch.cat([pictures.rot90(turns, (2, 3)) for turns in range(4)])
    labels, tested = torch.arange(4).repeat_interleave(generated), index.repeat(4) >= generated * 3 // 5
    reader = FrozenExtractor(backbone, (backbone.defaults.block,), (10,))
    (maps,) = reader(turned, torch.arange(len(turned))).values()

    def accuracy(values: Tensor) -> float:
        scores = held_out_scores("ridge", values.flatten(1), labels, tested, tested[:0], 4)
        return float((scores.argmax(1) == labels[tested]).float().mean())

    assert accuracy(pool_to(maps, 2)) > accuracy(turned) + 0.05
