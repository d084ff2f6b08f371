"""Tiny text-to-image pipelines with random weights, in diffusers format, made without a network.

Their images have 32 pixels a side where the pipeline lets a network choose, and their latents 16. The Flux
pipeline takes 128 for its latents, whatever its network is. `changes` go to the denoiser's configuration and
`scheduler` to the scheduler's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

Changes = Mapping[str, Any] | None

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLIP_LENGTH = 12  # tokens of a prompt; the real tokenizers have 77


def write_stable_diffusion(folder: Path, scheduler: Changes = None, **changes: Any) -> Path:
    """Write a Stable Diffusion pipeline with a UNet2DConditionModel, and return `folder`."""
    torch.manual_seed(0)
    config = {**_UNET, "cross_attention_dim": 16, "attention_head_dim": 4, **changes}
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel, 16),
        tokenizer=_clip_tokenizer(),
        unet=UNet2DConditionModel(**config),
        scheduler=PNDMScheduler(
            **{
                **BETAS,
                "skip_prk_steps": True,
                "steps_offset": 1,
                "set_alpha_to_one": False,
                **(scheduler or {}),
            }
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_stable_diffusion_xl(folder: Path, scheduler: Changes = None, **changes: Any) -> Path:
    """Write a Stable Diffusion XL pipeline, with two CLIP encoders and micro-conditions."""
    torch.manual_seed(0)
    config = {
        **_UNET,
        "cross_attention_dim": 16 + 24,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
        **changes,
    }
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel, 16),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 24, projection_dim=20),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(pad_token="!"),
        unet=UNet2DConditionModel(**config),
        scheduler=EulerDiscreteScheduler(**{**BETAS, "steps_offset": 1, **(scheduler or {})}),
    ).save_pretrained(folder)
    return folder


def write_pixart_alpha(folder: Path, scheduler: Changes = None, **changes: Any) -> Path:
    """Write a PixArt-alpha pipeline; with `sample_size=128` it has micro-conditions."""
    return _write_pixart(PixArtAlphaPipeline, folder, scheduler, changes)


def write_pixart_sigma(folder: Path, scheduler: Changes = None, **changes: Any) -> Path:
    """Write a PixArt-Sigma pipeline."""
    return _write_pixart(
        PixArtSigmaPipeline, folder, scheduler, {"use_additional_conditions": False, **changes}
    )


def write_stable_diffusion_3(
    folder: Path, scheduler: Changes = None, t5: bool = True, **changes: Any
) -> Path:
    """Write a Stable Diffusion 3 pipeline with two CLIP encoders and, if `t5`, T5."""
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 48,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 16 + 20,
        "pos_embed_max_size": 16,
        **changes,
    }
    StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.06),
        text_encoder=_clip(CLIPTextModelWithProjection, 16, projection_dim=16),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 24, projection_dim=20),
        text_encoder_3=_t5() if t5 else None,
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(pad_token="!"),
        tokenizer_3=_t5_tokenizer() if t5 else None,
        transformer=SD3Transformer2DModel(**config),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **(scheduler or {})}),
    ).save_pretrained(folder)
    return folder


def write_flux(folder: Path, scheduler: Changes = None, **changes: Any) -> Path:
    """Write a Flux pipeline with embedded guidance, as FLUX.1-dev has; its denoiser takes packed latents."""
    torch.manual_seed(0)
    config = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
        **changes,
    }
    FluxPipeline(
        vae=_vae(shift_factor=0.1),
        text_encoder=_clip(CLIPTextModel, 16),
        text_encoder_2=_t5(),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
        transformer=FluxTransformer2DModel(**config),
        scheduler=FlowMatchEulerDiscreteScheduler(
            **{"shift": 3.0, "use_dynamic_shifting": True, **(scheduler or {})}
        ),
    ).save_pretrained(folder)
    return folder


_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def _write_pixart(kind: Any, folder: Path, scheduler: Changes, changes: Mapping[str, Any]) -> Path:
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        # micro-conditions split the width into thirds
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
        "caption_channels": 48,
        **changes,
    }
    kind(
        vae=_vae(),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=PixArtTransformer2DModel(**config),
        scheduler=DPMSolverMultistepScheduler(
            **{"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", **(scheduler or {})}
        ),
    ).save_pretrained(folder)
    return folder


def _vae(**changes: Any) -> AutoencoderKL:
    """An autoencoder whose latents are half as wide as its images."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **changes,
    )


def _clip(kind: Any, width: int, **changes: Any) -> Any:
    config = {
        "vocab_size": len(_clip_vocabulary()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": _clip_vocabulary()["<|startoftext|>"],
        "eos_token_id": _clip_vocabulary()["<|endoftext|>"],
        **changes,
    }
    return kind(CLIPTextConfig(**config)).eval()


def _clip_vocabulary() -> dict[str, int]:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    settings = {"model_max_length": CLIP_LENGTH, "tokenizer_class": "CLIPTokenizer", "pad_token": pad_token}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(_clip_vocabulary()))
        (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return CLIPTokenizer.from_pretrained(folder)


def _t5_vocabulary() -> list[tuple[str, float]]:
    letters = [(chr(code), -3.0) for code in range(ord("a"), ord("z") + 1)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters, ("▁cat", -4.0)]


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_vocabulary()),
            d_model=48,
            d_kv=8,
            num_heads=2,
            d_ff=32,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    ).eval()


def _t5_tokenizer() -> T5TokenizerFast:
    tokenizer = Tokenizer(models.Unigram(_t5_vocabulary(), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    settings = {"model_max_length": 512, "tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return T5TokenizerFast.from_pretrained(folder)
