"""Small backbones with random weights."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from difflens.backbones.bigan import BiGANBackbone, Generator, GeneratorConfig
from difflens.backbones.unet import UNetBackbone
from difflens.pretraining import networks
from difflens.processes.schedulers import process_of


def make_backbone(**changes: object) -> UNetBackbone:
    """A small random network; `changes` go to UNet2DModel."""
    config: dict = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    return UNetBackbone(UNet2DModel(**{**config, **changes}), process_of(), "test")


def bigan(seed: int = 5) -> BiGANBackbone:
    torch.manual_seed(seed)
    config = networks.encoder_config("tiny", "resnet")
    return BiGANBackbone(config.build(), config, Generator(GeneratorConfig(8, (16, 8, 4), 3, 16)))


def write_inception(path: Path) -> None:
    """Write Inception's weights at random, or skip the test without torch-fidelity."""
    inception = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="an optional extra"
    )
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        weights = inception.FeatureExtractorInceptionV3("inception", ["2048"]).state_dict()
    torch.save(weights, path)
