"""Tiny pipelines without text, with random weights, one of each family, in diffusers format.

Each has an image of 16 or 32 pixels. `changes` go to the network's configuration.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
    VQModel,
)

from difflens.backbones.distilled import write_distilled
from difflens.processes.clean import Clean

UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
}


def write_unet(folder: Path, scheduler: Any = None, **changes: Any) -> Path:
    """A `UNet2DModel` on pixels with any scheduler, in one folder."""
    torch.manual_seed(0)
    UNet2DModel(**{**UNET, **changes}).save_pretrained(folder)
    (scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def write_edm(folder: Path, **changes: Any) -> Path:
    """A `UNet2DModel` with an EDM scheduler."""
    return write_unet(folder, EDMEulerScheduler(), **changes)


def write_flow(folder: Path, **changes: Any) -> Path:
    """A `UNet2DModel` with a flow-matching scheduler."""
    return write_unet(folder, FlowMatchEulerDiscreteScheduler(shift=2.0), **changes)


def write_consistency_model(folder: Path, **changes: Any) -> Path:
    """A `ConsistencyModelPipeline`."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{**UNET, "resnet_time_scale_shift": "scale_shift", **changes})
    ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()).save_pretrained(folder)
    return folder


def write_ncsnpp(folder: Path, **changes: Any) -> Path:
    """A `ScoreSdeVePipeline` with an NCSN++ network, which is told sigma."""
    torch.manual_seed(0)
    config = {
        **UNET,
        "time_embedding_type": "fourier",
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "norm_num_groups": None,
        "center_input_sample": True,
        "block_out_channels": (32, 32),
        **changes,
    }
    ScoreSdeVePipeline(UNet2DModel(**config), ScoreSdeVeScheduler()).save_pretrained(folder)
    return folder


def write_student(folder: Path, **changes: Any) -> Path:
    """A student of `difflens distill`: a `UNet2DModel` on clean images of 16 pixels."""
    torch.manual_seed(0)
    UNet2DModel(**{**UNET, **changes}).save_pretrained(folder / "unet")
    write_distilled(folder, Clean(5))
    return folder


def write_ldm(folder: Path, **changes: Any) -> Path:
    """An `LDMPipeline` with a VQ model: images of 32 pixels, latents of 16."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{**UNET, **changes})
    vqvae = VQModel(**AUTOENCODER, latent_channels=3, num_vq_embeddings=32)
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    )
    LDMPipeline(vqvae, unet, scheduler).save_pretrained(folder)
    return folder


def write_autoencoder(folder: Path, **changes: Any) -> Path:
    """An `AutoencoderKL` alone, with latents of half the images' side."""
    torch.manual_seed(3)
    AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4, **changes}).save_pretrained(folder)
    return folder


def write_dit(folder: Path, **changes: Any) -> Path:
    """A `DiTPipeline`: images of 16 pixels, latents of 8, tokens of 4 by 4."""
    torch.manual_seed(1)  # not the seed of an untrained network
    transformer = DiTTransformer2DModel(**{**DIT, **changes})
    vae = AutoencoderKL(**AUTOENCODER, latent_channels=4)
    DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder
