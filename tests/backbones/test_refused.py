"""Files and folders of networks that difflens does not read: it names what they are, and what to do."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline

from difflens import DiffLensError, load_backbone
from difflens.backbones.base import DiffusionBackbone
from tests.helpers import families, pipelines
from tests.helpers.adm import Adm
from tests.helpers.dit import Dit

ADM: dict[str, Any] = {"num_head_channels": 16, "image_size": 32}


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def load(spec: Path, **options: Any) -> DiffusionBackbone:
    backbone = load_backbone(spec, **options)
    assert isinstance(backbone, DiffusionBackbone)
    return backbone


@pytest.fixture
def sd(tmp_path: Path) -> Path:
    return pipelines.write_stable_diffusion(tmp_path / "sd")


# Checkpoint files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "all parts of a latent diffusion model.*from_single",
        ),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
        ("conv_in.weight", "name their folder, which holds config.json"),
        ("double_blocks.0.img_attn.qkv.weight", "the authors of Flux or Stable Diffusion 3"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "ckpt"])
def test_a_file_of_another_project(tmp_path: Path, name: str, message: str, ending: str) -> None:
    torch.save({name: torch.zeros(4, 3)}, tmp_path / f"model.{ending}")
    with pytest.raises(DiffLensError, match=message):
        load(tmp_path / f"model.{ending}")


@pytest.mark.parametrize("channels", [4, 6])
def test_a_checkpoint_that_takes_more_than_an_image(tmp_path: Path, channels: int) -> None:
    """OpenAI's upsamplers take x_t and the small image: 6 channels."""
    state = Adm().random_state()
    state["input_blocks.0.0.weight"] = torch.zeros(32, channels, 3, 3)
    torch.save(state, tmp_path / "upsampler.pt")
    with pytest.raises(DiffLensError, match=f"takes {channels} channels.*An upsampler"):
        load(tmp_path / "upsampler.pt", **ADM)


def test_a_checkpoint_of_a_consistency_model(tmp_path: Path) -> None:
    state = Adm().random_state()
    for name in [name for name in state if name.endswith((".qkv.weight", ".proj_out.weight"))]:
        state[name] = state[name][..., None]
    torch.save(state, tmp_path / "cd.pt")
    with pytest.raises(DiffLensError, match="consistency_models and EDM"):
        load(tmp_path / "cd.pt", **ADM)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"path_type": "Linear", "prediction": "velocity"}, {"family": "sit"}, None),
        ({"path_type": "linear", "prediction": "v"}, {"family": "repa"}, None),
        ({"path_type": "GVP", "prediction": "velocity"}, {"family": "sit"}, "path_type 'GVP'"),
        ({"path_type": "cosine"}, {"family": "repa"}, "path_type 'cosine'"),
        ({"path_type": "Linear", "prediction": "noise"}, {"family": "sit"}, "prediction 'noise'"),
        ({"path_type": "Linear"}, {"family": "dit"}, "as SiT and REPA, not as DiT"),
    ],
)
def test_what_a_training_was_told_is_read(
    tmp_path: Path, arguments: dict[str, str], options: dict[str, Any], message: str | None
) -> None:
    dit = Dit()
    families.write_autoencoder(tmp_path / "vae")
    torch.save({"ema": dit.random_state(), "args": Namespace(**arguments)}, tmp_path / "last.pt")
    options |= {"num_head_channels": dit.width // dit.heads, "autoencoder": str(tmp_path / "vae")}
    if message is None:
        assert load(tmp_path / "last.pt", **options).process.name == "linear interpolant"
        return
    with pytest.raises(DiffLensError, match=message):
        load(tmp_path / "last.pt", **options)


# Folders


def test_a_text_network_without_a_scheduler(sd: Path) -> None:
    """Those of Stable Diffusion have scaled linear betas, and others other ones."""
    shutil.rmtree(sd / "scheduler")
    edit(sd / "model_index.json", scheduler=[None, None])
    with pytest.raises(DiffLensError, match=r"without a scheduler.*add the folder scheduler/"):
        load(sd, condition="zero")


def test_a_scheduler_without_a_class(tmp_path: Path) -> None:
    folder = families.write_flow(tmp_path / "flow")
    edit(next(folder.rglob("scheduler_config.json")), _class_name=...)
    with pytest.raises(DiffLensError, match="_class_name is None: it must name a class"):
        load(folder)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"in_channels": 6, "out_channels": 3}, "takes 6 channels and gives 3: besides x_t it is fed more"),
        ({"in_channels": 3, "out_channels": 1}, "takes 3 channels and gives 1: that is no prediction"),
        ({"in_channels": 1, "out_channels": 3}, "takes 1 channel and gives 3: that is no prediction"),
    ],
)
def test_channels_of_no_denoiser(tmp_path: Path, channels: dict[str, int], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        load(families.write_unet(tmp_path / "unet", **channels))


@pytest.mark.parametrize("channels", [8, 9])
def test_a_text_network_that_is_also_fed_an_image(tmp_path: Path, channels: int) -> None:
    """As those that fill holes in an image, or edit it."""
    folder = pipelines.write_stable_diffusion(tmp_path / "inpaint", in_channels=channels, out_channels=4)
    with pytest.raises(DiffLensError, match=f"takes {channels} channels and gives 4: besides x_t"):
        load(folder, condition="zero")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"latents_mean": [0, 0], "latents_std": [1, 1]}, "must both have 4 numbers"),
        ({"latents_mean": [0, 0, 0, 0]}, "must both have 4 numbers"),
        ({"latents_mean": [0], "latents_std": [1]}, "must both have 4 numbers"),
    ],
)
def test_latents_of_no_known_scale(sd: Path, changes: dict[str, Any], message: str) -> None:
    edit(sd / "vae" / "config.json", **changes)
    with pytest.raises(DiffLensError, match=message):
        load(sd, condition="zero")


def test_a_class_that_is_not_walked_is_named_before_its_fields(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]}')
    with pytest.raises(DiffLensError, match="holds a WanTransformer3DModel; difflens walks"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_quantised_weights(sd: Path, part: str) -> None:
    edit(sd / part / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(DiffLensError, match=rf"{part}.*quantised \(bitsandbytes\): difflens reads float"):
        load(sd)


def test_weights_under_another_name(tmp_path: Path) -> None:
    folder = families.write_unet(tmp_path / "unet")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(DiffLensError, match=r"no weights under a name that is read: it holds .*non_ema"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "model_index.json",
            '{"_class_name": "StableCascadeDecoderPipeline"}',
            "StableCascadeDecoderPipeline",
        ),
        ("pytorch_lora_weights.safetensors", "", "it is a LoRA"),
        ("modular_model_index.json", "{}", "a modular pipeline"),
        ("snapshots/x", "", "a cache of the hub"),
    ],
)
def test_a_folder_without_a_network(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(DiffLensError, match=f"is not a diffusers model: .*{message}"):
        load(tmp_path)


# What is read


def test_a_variant_of_a_whole_pipeline(sd: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd)
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert load(tmp_path / "fp16").fingerprint() == load(tmp_path / "whole").fingerprint()


def test_the_guidance_of_the_pipeline_that_the_folder_names(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion(tmp_path / "lcm", time_cond_proj_dim=8)
    edit(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    condition = load(folder, condition="zero").condition
    assert condition is not None
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([8.5 - 1]), embedding_dim=8
    )
    torch.testing.assert_close(condition.tensors["timestep_cond"], expected)
    (folder / "model_index.json").unlink()
    with pytest.raises(DiffLensError, match=r"no model_index\.json"):
        load(folder, condition="zero")


def test_what_needs_a_text_encoder_says_how_to_do_without(sd: Path) -> None:
    edit(sd / "model_index.json", _class_name="KolorsPipeline")
    with pytest.raises(DiffLensError, match=r"is a KolorsPipeline.*--condition zero reads"):
        load(sd)
    assert load(sd, condition="zero").condition is not None


def test_an_autoencoder_without_values_is_described(sd: Path) -> None:
    facts = load_backbone(f"random:{sd}", condition="zero", device="meta").facts()
    assert "AutoencoderKL, scale" in str(facts)
