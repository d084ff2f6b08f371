"""Pipelines whose parts do not belong together, or are missing or damaged: each is named, nothing is run."""

import argparse
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    MotionAdapter,
    UNet2DModel,
    VQModel,
)
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from difflens import DiffLensError, DiffusionBackbone, load_backbone
from difflens.backbones.autoencoder import Autoencoder
from tests.helpers import families, pipelines
from tests.helpers.adm import Adm
from tests.helpers.cli import run
from tests.helpers.dit import Dit
from tests.helpers.images import make_image_tree


@pytest.fixture
def ldm(tmp_path: Path) -> Path:
    return families.write_ldm(tmp_path / "ldm")


@pytest.fixture
def dit(tmp_path: Path) -> Path:
    return families.write_dit(tmp_path / "dit")


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def assert_refused(spec: Path, message: str, **options: Any) -> None:
    with pytest.raises(DiffLensError, match=message):
        load_backbone(str(spec), **options)


# Autoencoders


def test_an_autoencoder_of_other_channels(dit: Path) -> None:
    shutil.rmtree(dit / "vae")
    AutoencoderKL(**families.AUTOENCODER, latent_channels=8).save_pretrained(dit / "vae")
    assert_refused(dit, "takes 4 channels, and its autoencoder makes latents of 8")


def test_latents_without_an_autoencoder(dit: Path) -> None:
    shutil.rmtree(dit / "vae")
    (dit / "model_index.json").unlink()
    assert_refused(
        dit, "takes 4 channels, which are latents, and has no vae/ or vqvae/ folder: .*--autoencoder"
    )


def test_an_autoencoder_that_is_named_is_read(dit: Path, tmp_path: Path) -> None:
    shutil.move(dit / "vae", tmp_path / "vae")
    backbone = load_backbone(str(dit), autoencoder=str(tmp_path / "vae"))
    assert (backbone.image_size, backbone.in_channels) == (16, 3)


def test_a_second_autoencoder(ldm: Path, tmp_path: Path) -> None:
    assert_refused(ldm, "has an autoencoder, vqvae/: leave out --autoencoder", autoencoder=str(tmp_path))


def test_an_autoencoder_for_a_network_of_pixels(tmp_path: Path) -> None:
    pixels, vae = families.write_unet(tmp_path / "pixels"), families.write_autoencoder(tmp_path / "vae")
    assert_refused(pixels, "takes 3 channels, and its autoencoder makes latents of 4", autoencoder=str(vae))


def test_an_autoencoder_of_another_class(dit: Path) -> None:
    shutil.rmtree(dit / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(dit / "vae")
    assert_refused(dit, "holds an AutoencoderTiny; .* knows are AutoencoderKL, VQModel")


def test_a_damaged_autoencoder(dit: Path) -> None:
    weights = dit / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(dit, "vae cannot be loaded")
    (dit / "vae" / "config.json").unlink()
    assert_refused(dit, "vae is not an autoencoder: there is no config.json")


def test_a_vq_model_whose_file_has_no_scale_was_trained_with_1(ldm: Path) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    network = VQModel.from_pretrained(ldm / "vqvae")
    with torch.no_grad():
        z = network.encode(images).latents
    torch.testing.assert_close(load_backbone(str(ldm)).encode(images), 0.18215 * z)
    edit(ldm / "vqvae" / "config.json", scaling_factor=...)
    torch.testing.assert_close(load_backbone(str(ldm)).encode(images), z)


@torch.no_grad()
def test_scale_shift_and_statistics_of_latents(tmp_path: Path) -> None:
    """As in diffusers' pipelines: (z - shift) * scale, or normalised by channel; decoding undoes it."""
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for name, fields in {
        "shifted": {"scaling_factor": 1.5, "shift_factor": 0.25},
        "by channel": {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    }.items():
        autoencoder = Autoencoder.from_folder(families.write_autoencoder(tmp_path / name, **fields))
        z = autoencoder.network.encode(images).latent_dist.mean
        if name == "shifted":
            expected = (z - 0.25) * 1.5
        else:
            mean, std = (
                torch.tensor(fields[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std")
            )
            expected = (z - mean) / std * 0.18215
        torch.testing.assert_close(autoencoder.encode(images), expected)
        torch.testing.assert_close(
            autoencoder.decode(expected), autoencoder.network.decode(z).sample, atol=1e-4, rtol=1e-4
        )


def test_latents_that_are_not_finite(dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = dit / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, weights, {"format": "pt"})
    backbone = load_backbone(str(dit))
    with pytest.raises(DiffLensError, match="latents of AutoencoderKL are not finite"):
        backbone.encode(torch.zeros(1, 3, 16, 16))
    images = make_image_tree(tmp_path / "images", per_class=3)
    data = f"folder:{images}"
    assert run("probe", "--backbone", dit, "--data", data, "--epochs", 1, "--out", tmp_path / "run") == 2
    assert "latents of AutoencoderKL are not finite" in capsys.readouterr().err


def test_a_side_that_the_autoencoder_does_not_divide(ldm: Path) -> None:
    assert_refused(ldm, "image side 33 is not a multiple of 2, the autoencoder's stride", image_size=33)
    assert_refused(ldm, "image side 34 is not a multiple of 4, the backbone's largest stride", image_size=34)


# Schedulers and networks


def test_the_scheduler_of_another_pipeline(ldm: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(ldm / "scheduler")
    assert_refused(ldm, "names a DDIMScheduler in model_index.json, and its scheduler is a FlowMatchEuler")


def test_a_scheduler_that_is_named_and_missing(ldm: Path) -> None:
    shutil.rmtree(ldm / "scheduler")
    assert_refused(
        ldm, "has no scheduler/scheduler_config.json, and its model_index.json names a DDIMScheduler"
    )


@pytest.mark.parametrize("write", [pipelines.write_stable_diffusion_3, pipelines.write_flux])
def test_a_network_of_flow_matching_with_another_process(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "pipeline")
    options = {"condition": "zero", "image_size": 32}
    autoencoder = str(folder / "vae")
    shutil.copytree(folder / "transformer", tmp_path / "alone")
    assert_refused(
        tmp_path / "alone", "a network of flow matching, and it has no", autoencoder=autoencoder, **options
    )
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    DDIMScheduler().save_pretrained(folder / "scheduler")
    assert_refused(folder, "a network of flow matching, and its process is variance preserving", **options)


def test_weights_that_contradict_the_folder(ldm: Path) -> None:
    shutil.copytree(ldm / "unet", ldm / "unet_ema")
    assert_refused(ldm / "unet", "holds other weights", weights="ema")
    assert_refused(ldm / "unet_ema", "holds other weights", weights="raw")
    assert load_backbone(str(ldm / "unet"), weights="raw").fingerprint()


def test_positions_end_somewhere(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion_3(tmp_path / "sd3")
    most = json.loads((folder / "transformer" / "config.json").read_text())["pos_embed_max_size"]
    side = load_backbone(str(folder), condition="zero").input_stride * 2 * (most + 1)
    assert_refused(folder, "has positions for images of", condition="zero", image_size=side)


def test_a_scale_of_null(ldm: Path) -> None:
    path = ldm / "vqvae" / "config.json"
    path = path if path.exists() else ldm / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": None}))
    assert_refused(ldm, "scaling_factor")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_shards_of_a_variant(tmp_path: Path, variant: str) -> None:
    folder = families.write_unet(tmp_path / "x")
    expected = load_backbone(str(folder)).fingerprint()
    network = UNet2DModel.from_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder, variant=variant, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load_backbone(str(folder)).fingerprint() == expected


def test_one_part_of_a_pipeline_is_read_with_the_others(
    ldm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The U-Net alone would read latents as pixels, since it has three channels, and lose its scheduler."""
    backbone = load_backbone(str(ldm / "unet"))
    assert backbone.fingerprint() == load_backbone(str(ldm)).fingerprint()
    assert f"{ldm / 'unet'} is part of the pipeline in {ldm}" in capsys.readouterr().err


def test_a_schedule_that_is_assumed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = families.write_unet(tmp_path / "x")
    load_backbone(str(folder))
    assert not capsys.readouterr().err
    (folder / "scheduler_config.json").unlink()
    load_backbone(str(folder))
    assert "no scheduler_config.json: DDPM's linear schedule is assumed" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_folder_of_an_autoencoder_is_one_error_and_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    folder = families.write_autoencoder(tmp_path / "vae")
    capsys.readouterr()
    assert run("info", f"{prefix}{folder}") == 2
    errors = capsys.readouterr().err
    assert "holds an AutoencoderKL; difflens walks UNet2DModel" in errors
    assert "warning" not in errors


@pytest.mark.parametrize("channels", [4, 16])
def test_a_network_of_latents_without_its_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int
) -> None:
    folder = families.write_unet(tmp_path / "unet", in_channels=channels, out_channels=channels)
    (folder / "scheduler_config.json").unlink()
    capsys.readouterr()
    assert run("info", folder) == 2
    errors = capsys.readouterr().err
    assert f"takes {channels} channels, which are latents" in " ".join(errors.split())
    assert "--autoencoder" in errors
    assert "assumed" not in errors
    vae = families.write_autoencoder(tmp_path / "vae", latent_channels=channels)
    assert run("info", folder, "--autoencoder", vae) == 0
    errors = capsys.readouterr().err
    assert "assumed" in errors
    assert "--autoencoder" not in errors


def test_latents_of_three_channels_may_be_meant(
    ldm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They look like pixels, so that only a line can say it."""
    shutil.copytree(ldm / "unet", tmp_path / "alone")
    load_backbone(str(tmp_path / "alone"))
    assert "A network that reads latents also needs its --autoencoder" in capsys.readouterr().err


def test_averaged_weights_of_a_training_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers' training scripts write unet/ and unet_ema/."""
    raw = load_backbone(str(families.write_unet(tmp_path / "checkpoint" / "unet"))).fingerprint()
    network = UNet2DModel(**families.UNET)  # other weights
    ema = EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config)
    ema.save_pretrained(tmp_path / "checkpoint" / "unet_ema")
    capsys.readouterr()
    folder = tmp_path / "checkpoint"
    averaged = load_backbone(str(folder))
    assert "unet_ema/ is read; see --weights" in capsys.readouterr().err
    state = averaged.get_submodule("unet").state_dict()
    assert torch.equal(state["conv_in.weight"], network.conv_in.weight)
    assert averaged.fingerprint() == load_backbone(str(folder), weights="ema").fingerprint()
    assert load_backbone(str(folder), weights="raw").fingerprint() == raw != averaged.fingerprint()
    assert_refused(folder / "unet", "holds one set of weights", weights="raw")


def test_weights_in_float16_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = families.write_unet(tmp_path / "x")
    UNet2DModel.from_pretrained(folder).half().save_pretrained(folder, variant="fp16")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    backbone = load_backbone(str(folder))
    assert next(backbone.parameters()).dtype == torch.float32
    assert "holds weights in float16 only" in capsys.readouterr().err


def test_a_network_for_images_that_are_not_square(tmp_path: Path) -> None:
    folder = families.write_unet(tmp_path / "x", sample_size=(16, 32))
    assert_refused(folder, "takes images of 16 x 32 pixels, not square ones")


def test_blocks_of_other_networks(tmp_path: Path) -> None:
    types = {
        "down_block_types": ("KDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "KUpBlock2D"),
    }
    folder = families.write_unet(tmp_path / "x", **types, block_out_channels=(32, 32))
    assert_refused(folder, "KDownBlock2D, KUpBlock2D is not a block that difflens can walk")


def test_a_network_that_is_not_walked(tmp_path: Path) -> None:
    MotionAdapter(block_out_channels=(32,)).save_pretrained(tmp_path / "motion")
    assert_refused(tmp_path / "motion", "holds a MotionAdapter; difflens walks UNet2DModel, UNet2DCond")


@pytest.mark.parametrize("name", ["Transformer2DModel", "LuminaNextDiT2DModel", "NoSuchModel", None])
def test_transformers_that_are_refused_by_class_name(dit: Path, name: object) -> None:
    edit(dit / "transformer" / "config.json", _class_name=name, norm_type="layer_norm")
    assert_refused(dit, f"holds a {name}; difflens walks")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("_class_name", 3, "_class_name is 3: it must name a class"),
        ("norm_eps", "small", "norm_eps is 'small': it must be of the type float"),
        ("freq_shift", "0", "freq_shift is '0': it must be of the type int"),
        ("down_block_types", ["DownBlock2D", 2], "down_block_types is .*: it must be of the type list, str"),
        ("time_embedding_type", "sundial", "time_embedding_type is 'sundial': "),
        ("norm_eps", float("nan"), "norm_eps is nan: it must be a finite number"),
        ("layers_per_block", 1.5, "layers_per_block is 1.5: it must be of the type int"),
        ("add_attention", 1.5, "add_attention is 1.5: it must be of the type bool"),
    ],
)
def test_fields_of_another_type(tmp_path: Path, field: str, value: object, message: str) -> None:
    folder = families.write_unet(tmp_path / "unet")
    edit(folder / "config.json", **{field: value})
    assert_refused(folder, rf"config\.json: {message}")


def test_the_former_name_of_dit(dit: Path) -> None:
    expected = load_backbone(str(dit)).fingerprint()
    edit(dit / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert load_backbone(str(dit)).fingerprint() == expected


def test_blocks_that_are_not_walked(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion(
        tmp_path / "sd",
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    )
    assert_refused(folder, "SimpleCrossAttnDownBlock2D, UNetMidBlock2DSimpleCrossAttn is not a block")


def test_conditions_that_cannot_be_given(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion(tmp_path / "sd", num_class_embeds=4)
    assert_refused(folder, "takes a condition that difflens cannot give: its num_class_embeds is 4")


# Text encoders


def test_a_text_encoder_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipelines.write_stable_diffusion(tmp_path / "sd")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert_refused(folder, r'pip install "difflens\[text\]"')


def test_an_embedding_of_another_network(tmp_path: Path) -> None:
    """A stored embedding whose width is not the network's."""
    folder = pipelines.write_stable_diffusion(tmp_path / "sd")
    file = tmp_path / "condition.safetensors"
    save_file({"encoder_hidden_states": torch.zeros(1, 12, 24)}, file)
    message = r"takes encoder_hidden_states of width 16, and the empty prompt has the shape \(1, 12, 24\)"
    assert_refused(folder, message, condition_file=str(file))
    save_file({"other": torch.zeros(1, 12, 24)}, file)
    assert_refused(folder, "of width 16, and the empty prompt has none", condition_file=str(file))


# Levels


@pytest.mark.parametrize(
    ("write", "level", "message"),
    [
        (families.write_edm, "100", "noise step 100 is outside the schedule: .* sigma 0.002 to 80"),
        (families.write_flow, "1.5", "noise step 1.5 is outside the schedule: .* times 0 to 1"),
        (families.write_unet, "0.5", "noise step 0.5 is no whole number"),
        (families.write_ncsnpp, "0", "noise step 0 is outside the schedule: .* sigma 0.01 to 1348"),
        (families.write_flow, "nan", "noise-steps is nan"),
    ],
)
def test_levels_outside_the_process(
    write: Callable[[Path], Path],
    level: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, images = write(tmp_path / "x"), make_image_tree(tmp_path / "images", per_class=3)
    options = ("--backbone", folder, "--data", f"folder:{images}", "--noise-steps", level)
    assert run("probe", *options, "--out", tmp_path / "run") == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()


# Checkpoints in DiT's layout


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(Dit().random_state(), tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_what_a_file_in_dits_layout_needs(checkpoint: Path, tmp_path: Path) -> None:
    vae = str(families.write_autoencoder(tmp_path / "vae"))
    head = {"num_head_channels": Dit().width // Dit().heads}
    assert_refused(checkpoint, "layout of DiT, SiT and REPA, .*: say --family dit, sit or repa", **head)
    assert_refused(checkpoint, "name the folder of its autoencoder with --autoencoder", family="dit", **head)
    given = {"family": "dit", "autoencoder": vae, **head}
    assert_refused(checkpoint, "takes no other size", image_size=32, **given)
    assert_refused(
        checkpoint, "is no such folder|is not an autoencoder", **{**given, "autoencoder": "nowhere"}
    )
    torch.save(Dit().random_state() | {"projectors.0.weight": torch.zeros(2, 2)}, checkpoint)
    assert_refused(
        checkpoint, "has REPA's projectors, so it is not of the family sit", **{**given, "family": "sit"}
    )


def test_a_training_checkpoint_with_its_arguments(checkpoint: Path, tmp_path: Path) -> None:
    """The authors' training scripts write weights, averaged weights, optimiser and arguments."""
    given: dict[str, Any] = {
        "family": "sit",
        "autoencoder": str(families.write_autoencoder(tmp_path / "vae")),
        "num_head_channels": Dit().width // Dit().heads,
    }
    expected = load_backbone(str(checkpoint), **given).fingerprint()
    content = {
        "model": Dit().random_state(seed=9),
        "ema": Dit().random_state(),
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="SiT-XL/2", epochs=80),
    }
    torch.save(content, checkpoint)
    assert load_backbone(str(checkpoint), **given).fingerprint() == expected


def test_options_of_dits_layout_for_other_files(tmp_path: Path, ldm: Path) -> None:
    torch.save(Adm().random_state(), tmp_path / "adm.pt")
    assert_refused(
        tmp_path / "adm.pt", "is a guided-diffusion checkpoint: leave out", family="dit", num_head_channels=16
    )
    assert_refused(ldm, "is no checkpoint file", family="dit")


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, (3,))


@pytest.mark.parametrize("part", ["unet", "vqvae"])
def test_a_pickle_is_never_run(ldm: Path, part: str) -> None:
    (ldm / part / "diffusion_pytorch_model.safetensors").unlink()
    with (ldm / part / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump(_Code(), file)
    assert_refused(ldm, f"{part} cannot be loaded")


def test_weights_in_a_harmless_pickle_are_read(tmp_path: Path) -> None:
    folder = families.write_unet(tmp_path / "x")
    expected = load_backbone(str(folder)).fingerprint()
    UNet2DModel.from_pretrained(folder).save_pretrained(folder, safe_serialization=False)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert load_backbone(str(folder)).fingerprint() == expected


def test_attention_under_its_deprecated_names(tmp_path: Path) -> None:
    """Files from before diffusers 0.15 call the layers of an attention query, key, value and proj_attn."""
    folder = families.write_unet(tmp_path / "x")
    expected = load_backbone(str(folder)).fingerprint()
    weights = folder / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in load_file(weights).items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value
    save_file(state, weights, {"format": "pt"})
    backbone = load_backbone(str(folder))
    assert isinstance(backbone, DiffusionBackbone)
    assert backbone.fingerprint() == expected


def test_an_autoencoder_that_the_pipeline_names_and_lacks(ldm: Path) -> None:
    """Its latents have three channels, as pixels do."""
    shutil.rmtree(ldm / "vqvae")
    assert_refused(ldm, r"has no folder vqvae/, which its model_index\.json names: .*--autoencoder")


@pytest.mark.parametrize(
    ("write", "rows"), [(families.write_unet, 100), (families.write_edm, 1000), (families.write_flow, 1000)]
)
def test_a_table_of_steps_with_another_process(tmp_path: Path, write: Callable[..., Path], rows: int) -> None:
    folder = write(tmp_path / "learned", time_embedding_type="learned", num_train_timesteps=rows)
    assert_refused(folder, f"has a table of {rows:,} embeddings of steps")
