"""Folders of encoders: the network that is written is the one that is read, and others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflens import DiffLensError, load_backbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.encoder import EncoderBackbone
from difflens.pretraining import networks
from tests.helpers.networks import bigan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bigan().save(tmp_path)
    return tmp_path


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    saved, loaded = bigan(), load_backbone(str(folder))
    assert type(loaded) is BiGANBackbone
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert loaded.fingerprint() == saved.fingerprint()
    assert loaded.spec == str(folder)
    assert [block.channels for block in loaded.blocks] == [16, 16, 32, 48, 96]
    assert [block.stride for block in loaded.blocks] == [1, 1, 2, 4, 8]


def test_the_fingerprint_is_of_the_generator_too() -> None:
    first, second = bigan(), bigan()
    with torch.no_grad():
        next(second.generator.parameters()).add_(1)
    assert first.fingerprint() != second.fingerprint()


def test_untrained_is_the_same_network_with_other_weights(folder: Path) -> None:
    trained, untrained = load_backbone(str(folder)), load_backbone(f"random:{folder}")
    assert untrained.blocks == trained.blocks
    assert untrained.fingerprint() == load_backbone(f"random:{folder}").fingerprint() != trained.fingerprint()
    assert isinstance(untrained, EncoderBackbone)
    assert not any(
        torch.equal(mine, theirs)
        for mine, theirs in zip(trained.parameters(), untrained.parameters(), strict=True)
        if mine.dim() > 1
    )


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_images_of_another_size(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = networks.encoder_config("tiny", kind)
    EncoderBackbone(config.build(), config, "simclr").save(tmp_path)
    backbone = load_backbone(str(tmp_path), image_size=32)
    last = backbone.blocks[-1]
    maps = backbone.features(torch.zeros(1, 3, 32, 32), 0, [last.index])[last.index]
    assert maps.shape == (1, last.channels, 32 // last.stride, 32 // last.stride)


def test_damaged_folders(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    state, description = load_file(weights), json.loads(config.read_text())
    save_file({name: value for name, value in state.items() if "layer4" not in name}, weights)
    with pytest.raises(DiffLensError, match=r"model\.safetensors does not hold this encoder's weights"):
        load_backbone(str(folder))
    weights.write_bytes(b"")
    with pytest.raises(DiffLensError, match=r"model\.safetensors does not hold this encoder's weights"):
        load_backbone(str(folder))
    for change in ({"encoder": None}, {"encoder": {"architecture": "?"}}, {"generator": {"latent": 3}}):
        config.write_text(json.dumps(description | change))
        with pytest.raises(DiffLensError, match=r"config\.json does not describe an encoder"):
            load_backbone(str(folder))
