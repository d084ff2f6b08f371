"""Configurations of published models: facts of their files on the Hugging Face hub, without any weights.

Each entry holds the JSON files of one model by path. Fields that are the defaults of their class are left out
where the published file leaves them out too, or where they decide nothing here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Files = Mapping[str, Mapping[str, Any]]


def write_model(folder: Path, files: Files) -> Path:
    """Write the files of one model into `folder`, and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def _index(pipeline: str, **parts: str) -> dict[str, Any]:
    return {
        "_class_name": pipeline,
        **{name: [_library(kind), kind] for name, kind in parts.items()},
    }


def _library(kind: str) -> str:
    return "transformers" if kind.startswith(("CLIP", "T5")) else "diffusers"


# what the autoencoders of Stable Diffusion 3 and Flux have in common
_SIXTEEN_CHANNELS: dict[str, Any] = {
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}


def _autoencoder(side: int, **changes: Any) -> dict[str, Any]:
    """The autoencoder of Stable Diffusion 1 and 2 and of DiT, whose published files state no scale."""
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": side,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **changes,
    }


def _stable_diffusion(width: int, heads: int | list[int], side: int, **changes: Any) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": width,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": side,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        **changes,
    }


def _dit(side: int) -> dict[str, Any]:
    return {
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": side,
        "upcast_attention": False,
        "use_linear_projection": False,
    }


_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LINEAR_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

SD_VAE: Files = {"config.json": _autoencoder(256)}
"""stabilityai/sd-vae-ft-ema, which DiT and SiT were trained with."""

DIT_256: Files = {
    "model_index.json": _index(
        "DiTPipeline", scheduler="DDIMScheduler", transformer="Transformer2DModel", vae="AutoencoderKL"
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "DDIMScheduler",
        **_LINEAR_BETAS,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    },
    "transformer/config.json": _dit(32),
    "vae/config.json": _autoencoder(256),
}

LDM_CELEBAHQ: Files = {
    "model_index.json": _index("LDMPipeline", scheduler="DDIMScheduler", unet="UNet2DModel", vqvae="VQModel"),
    "scheduler/scheduler_config.json": {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "trained_betas": None,
    },
    "unet/config.json": {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": 32,
        "block_out_channels": [224, 448, 672, 896],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 64,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    },
    "vqvae/config.json": {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "in_channels": 3,
        "latent_channels": 3,
        "layers_per_block": 2,
        "num_vq_embeddings": 8192,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    },
}

DDPM_CIFAR10: Files = {
    "model_index.json": _index("DDPMPipeline", scheduler="DDPMScheduler", unet="UNet2DModel"),
    "config.json": {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
    "scheduler_config.json": {
        "_class_name": "DDPMScheduler",
        **_LINEAR_BETAS,
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "variance_type": "fixed_large",
    },
}

NCSNPP_CELEBAHQ: Files = {
    "model_index.json": _index("ScoreSdeVePipeline", scheduler="ScoreSdeVeScheduler", unet="UNet2DModel"),
    "config.json": {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1.41421356237,
        "norm_eps": 1e-06,
        "norm_num_groups": None,
        "out_channels": 3,
        "sample_size": 256,
        "time_embedding_type": "fourier",
        "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
    },
    "scheduler_config.json": {
        "_class_name": "ScoreSdeVeScheduler",
        "correct_steps": 1,
        "num_train_timesteps": 2000,
        "sampling_eps": 1e-05,
        "sigma_max": 1348,
        "sigma_min": 0.01,
        "snr": 0.15,
    },
}

CONSISTENCY_BEDROOM: Files = {
    "model_index.json": _index(
        "ConsistencyModelPipeline", scheduler="CMStochasticIterativeScheduler", unet="UNet2DModel"
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "CMStochasticIterativeScheduler",
        "clip_denoised": True,
        "num_train_timesteps": 40,
        "rho": 7.0,
        "s_noise": 1.0,
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
    },
    "unet/config.json": {
        "_class_name": "UNet2DModel",
        "attention_head_dim": 64,
        "block_out_channels": [256, 256, 512, 512, 1024, 1024],
        "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["AttnDownBlock2D"] * 3,
        "downsample_type": "resnet",
        "in_channels": 3,
        "layers_per_block": 2,
        "num_class_embeds": None,
        "out_channels": 3,
        "resnet_time_scale_shift": "default",
        "sample_size": 256,
        "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"] * 3,
        "upsample_type": "resnet",
    },
}

STABLE_DIFFUSION_1_5: Files = {
    "model_index.json": _index(
        "StableDiffusionPipeline",
        scheduler="PNDMScheduler",
        text_encoder="CLIPTextModel",
        tokenizer="CLIPTokenizer",
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        **_LATENT_BETAS,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "unet/config.json": _stable_diffusion(768, 8, 64),
    "vae/config.json": _autoencoder(512),
}

STABLE_DIFFUSION_2_1: Files = {
    "model_index.json": _index(
        "StableDiffusionPipeline",
        scheduler="DDIMScheduler",
        text_encoder="CLIPTextModel",
        tokenizer="CLIPTokenizer",
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "DDIMScheduler",
        **_LATENT_BETAS,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "unet/config.json": _stable_diffusion(
        1024,
        [5, 10, 20, 20],
        96,
        dual_cross_attention=False,
        num_class_embeds=None,
        only_cross_attention=False,
        upcast_attention=True,
        use_linear_projection=True,
    ),
    "vae/config.json": _autoencoder(768),
}

PIXART_512: Files = {
    "model_index.json": _index(
        "PixArtAlphaPipeline",
        scheduler="DPMSolverMultistepScheduler",
        text_encoder="T5EncoderModel",
        tokenizer="T5Tokenizer",
        transformer="Transformer2DModel",
        vae="AutoencoderKL",
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "DPMSolverMultistepScheduler",
        **_LINEAR_BETAS,
        "algorithm_type": "dpmsolver++",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "trained_betas": None,
        "variance_type": None,
    },
    "transformer/config.json": {
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "attention_type": "default",
        "caption_channels": 4096,
        "cross_attention_dim": 1152,
        "double_self_attention": False,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 64,
        "upcast_attention": False,
        "use_linear_projection": False,
    },
    "vae/config.json": _autoencoder(512, scaling_factor=0.18215),
}

STABLE_DIFFUSION_3: Files = {
    "model_index.json": _index(
        "StableDiffusion3Pipeline",
        scheduler="FlowMatchEulerDiscreteScheduler",
        text_encoder="CLIPTextModelWithProjection",
        text_encoder_2="CLIPTextModelWithProjection",
        text_encoder_3="T5EncoderModel",
        tokenizer="CLIPTokenizer",
        tokenizer_2="CLIPTokenizer",
        tokenizer_3="T5TokenizerFast",
        transformer="SD3Transformer2DModel",
        vae="AutoencoderKL",
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    },
    "transformer/config.json": {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "in_channels": 16,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 24,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
        "sample_size": 128,
    },
    "vae/config.json": _autoencoder(
        1024,
        **_SIXTEEN_CHANNELS,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ),
}

FLUX_DEV: Files = {
    "model_index.json": _index(
        "FluxPipeline",
        scheduler="FlowMatchEulerDiscreteScheduler",
        text_encoder="CLIPTextModel",
        text_encoder_2="T5EncoderModel",
        tokenizer="CLIPTokenizer",
        tokenizer_2="T5TokenizerFast",
        transformer="FluxTransformer2DModel",
        vae="AutoencoderKL",
    ),
    "scheduler/scheduler_config.json": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
    "transformer/config.json": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "vae/config.json": _autoencoder(
        1024,
        **_SIXTEEN_CHANNELS,
        mid_block_add_attention=True,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ),
}
