"""Every U-Net that can be pre-trained, on the meta device, without weights; recipes of heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from difflens import DiffLensError, PretrainConfig, ProbeConfig, presets
from difflens.backbones.adm import unet_from_adm
from difflens.backbones.unet import UNetBackbone
from difflens.configs.options import resolve
from difflens.pretraining import networks
from difflens.processes.schedulers import process_of
from tests.helpers.adm import ADM_256


@pytest.mark.parametrize("name", presets.PRETRAIN)
def test_every_recipe_has_a_network_that_takes_its_images(name: str, tmp_path: Path) -> None:
    config = resolve(PretrainConfig(data="fashion", out=tmp_path, preset=name))
    assert None not in (config.epochs, config.batch_size, config.learning_rate, config.ema_decay)
    arguments = networks.unet_config(presets.PRETRAIN[name]["unet"], bool(config.learned_variance))
    channels, side = arguments["in_channels"], arguments["sample_size"]
    with torch.device("meta"):
        unet = UNet2DModel(**arguments)
        output = unet(torch.empty(2, channels, side, side), torch.zeros(2, dtype=torch.long)).sample
    assert output.shape == (2, channels * (2 if config.learned_variance else 1), side, side)
    backbone = UNetBackbone(unet, process_of({}), name)
    assert side // max(block.stride for block in backbone.blocks) >= 4


def test_adm_256_is_the_papers_network() -> None:
    arguments = networks.unet_config("adm-256", learned_variance=True)
    with torch.device("meta"):
        ours = UNet2DModel(**arguments)
    theirs = unet_from_adm(ADM_256.meta_state())
    assert round(sum(parameter.numel() for parameter in ours.parameters()) / 1e5) == 5528
    configs = [{k: v for k, v in unet.config.items() if not k.startswith("_")} for unet in (ours, theirs)]
    assert configs[0] == configs[1]
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }


def test_sides_that_cannot_be_halved() -> None:
    assert networks.unet_config("fashion-32", side=40)["sample_size"] == 40
    with pytest.raises(DiffLensError, match=r"image-size 28 cannot be halved .* a multiple of 8"):
        networks.unet_config("fashion-32", side=28)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("name", presets.ENCODERS)
def test_encoders_are_as_large_as_the_unet_of_their_name(name: str, kind: Any) -> None:
    config = networks.encoder_config(name, kind)
    arguments = networks.unet_config(name)
    assert (config.channels, config.side) == (arguments["in_channels"], arguments["sample_size"])
    with torch.device("meta"):
        sizes = [
            sum(map(torch.numel, each.parameters())) for each in (UNet2DModel(**arguments), config.build())
        ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)


@pytest.mark.parametrize("name", [name for name in presets.PROBE if name.startswith("photos-")])
def test_a_recipe_of_photos_is_read_as_it_stands(name: str, tmp_path: Path) -> None:
    recipe = presets.PROBE[name]
    config = resolve(ProbeConfig(out=tmp_path, preset=name))
    assert {option: getattr(config, option) for option in recipe} == recipe
    assert resolve(ProbeConfig(out=tmp_path, preset=name, epochs=3)).epochs == 3


def test_an_option_takes_precedence_over_the_recipe(tmp_path: Path) -> None:
    assert resolve(ProbeConfig(out=tmp_path, preset="photos-linear")).normalise == "whiten"
    assert resolve(ProbeConfig(out=tmp_path, preset="photos-linear", normalise="none")).normalise == "none"
    with pytest.raises(DiffLensError, match="take --normalise none"):
        resolve(ProbeConfig(out=tmp_path, preset="photos-linear", augment="flip"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"head": "linear"}, None),
        ({"head": "knn"}, None),
        ({"head": "mix"}, "none"),
        ({"head": "linear", "augment": "flip"}, "none"),
        ({"head": "linear", "extractor": "finetuned"}, "none"),
        ({"preset": "paper-linear"}, "none"),
        ({"preset": "paper-linear", "augment": "none"}, "none"),
        ({"preset": "photos-linear"}, "whiten"),
    ],
)
def test_what_reads_cached_features_linearly_normalises_them(
    options: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    """None: it depends on the number of images."""
    assert resolve(ProbeConfig(out=tmp_path, **options)).normalise == expected
