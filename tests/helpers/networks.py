"""Small backbones with random weights."""

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
