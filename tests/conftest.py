"""Small real things that tests share: a network in diffusers format and a folder of images to tell apart."""

import os
import signal
from pathlib import Path

# float32 results on a CPU are equal bit for bit at equal numbers of threads; files of tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image, ImageDraw

from difflens import ScenesConfig, scenes
from tests.helpers.images import make_image_tree

os.environ["DIFFLENS_QUIET"] = "1"
# a shell's background processes ignore Ctrl-C, and their children would
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache."""
    os.environ["DIFFLENS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB network for 16-pixel images: encoder 1-4, middle 5, decoder 6-9."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("backbone")
    UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)
    DDPMScheduler(num_train_timesteps=100).save_pretrained(folder)
    return folder


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """train/ with 12 and val/ with 5 images of each of three classes, which differ in colour."""
    return make_image_tree(tmp_path / "images")


@pytest.fixture(scope="session")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs and bars on transparent ground, ten of each, every one of its own colour."""
    root = tmp_path_factory.mktemp("stamps")
    for kind, draw in (("disc", ImageDraw.ImageDraw.ellipse), ("bar", ImageDraw.ImageDraw.rectangle)):
        (root / kind / "deeper").mkdir(parents=True)
        for k in range(10):
            image = Image.new("RGBA", (40, 30), (9, 9, 9, 0))
            draw(ImageDraw.Draw(image), (5, 5 + k // 2, 35, 25), fill=(20 * k, 255 - 20 * k, 7 * k, 255))
            image.save(root / kind / ("deeper" if k % 2 else "") / f"{k}.png")
    Image.new("RGB", (8, 8), "red").save(root / "bar" / "opaque.png")
    (root / "bar" / "broken.png").write_bytes(b"?")
    return root


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory, stamps: Path) -> Path:
    """12 training and 5 validation scenes of discs and bars, 32 pixels wide."""
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    scenes(
        ScenesConfig(source=str(stamps), out=root, train=12, val=5, size=32, objects=(1, 2), scale=(0.4, 0.7))
    )
    return root
