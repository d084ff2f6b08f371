"""`load_backbone`: all forms of a backbone's name, right and wrong."""

import json
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    KarrasVeScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from difflens import DiffLensError, load_backbone, sample
from difflens.backbones.pixels import is_pixels
from difflens.backbones.unet import UNetBackbone

GOLDEN = Path(__file__).parents[1] / "fixtures" / "adm_tiny.safetensors"


def test_the_bundled_backbone() -> None:
    backbone = load_backbone("fashion")
    assert (backbone.in_channels, backbone.image_size, backbone.process.num_steps) == (1, 32, 1000)
    assert backbone.describe_blocks() == "the backbone has 25 blocks: encoder 1-12, middle 13, decoder 14-25"
    weights = Path(load_backbone.__code__.co_filename).parents[1] / "assets/fashion/unet"
    assert (weights / "diffusion_pytorch_model.safetensors").stat().st_size <= 10_000_000
    assert all(parameter.dtype == torch.float32 for parameter in backbone.parameters())


def test_the_bundled_backbone_predicts_noise() -> None:
    """On test images, its error is far below that of predicting zero."""
    from difflens import load_data, seeded_noise
    from difflens.data.images import fit, to_float

    backbone = load_backbone("fashion")
    images = to_float(fit(load_data("fashion").test.pixels[:32], 1, 32))
    index = torch.arange(32)
    for t, limit in ((100, 0.10), (500, 0.02)):
        noise = seeded_noise((1, 32, 32), index, t, seed=0)
        predicted = backbone.denoise(backbone.add_noise(images, t, noise), t)
        assert float((predicted - noise).square().mean()) < limit


def test_folders_with_and_without_a_pipeline(backbone_folder: Path, tmp_path: Path) -> None:
    plain = load_backbone(str(backbone_folder))
    assert plain.process.num_steps == 100
    unet = UNet2DModel.from_pretrained(backbone_folder)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "pipeline")
    assert load_backbone(str(tmp_path / "pipeline")).fingerprint() == plain.fingerprint()
    unet.save_pretrained(tmp_path / "bare")
    assert load_backbone(str(tmp_path / "bare")).process.num_steps == 1000


def test_diffusers_own_forward_gives_the_same(backbone_folder: Path) -> None:
    backbone, unet = load_backbone(str(backbone_folder)), UNet2DModel.from_pretrained(backbone_folder)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(backbone.denoise(x, 7), unet(x, 7).sample, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def adm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {k.removeprefix("weights."): v for k, v in load_file(GOLDEN).items() if k.startswith("weights.")}
    path = tmp_path_factory.mktemp("adm") / "x.pt"
    torch.save(state, path)
    return path


def test_the_command_of_the_readme(adm_file: Path) -> None:
    golden = load_file(GOLDEN)
    features = load_backbone(str(adm_file), num_head_channels=16, image_size=16).features(
        golden["x_t"], golden["t"], blocks=(1, 5), feedback=None
    )
    assert sorted(features) == [1, 5]
    for block, value in features.items():
        torch.testing.assert_close(value, golden[f"block.{block}"], atol=1e-4, rtol=0)


def test_another_schedule_for_a_checkpoint(adm_file: Path) -> None:
    linear, cosine = (
        load_backbone(str(adm_file), num_head_channels=16, noise_schedule=name, image_size=32)
        for name in ("linear", "squaredcos_cap_v2")
    )
    assert linear.fingerprint() != cosine.fingerprint()
    assert linear.image_size == 32


def test_what_a_checkpoint_file_does_not_show_is_asked_for(adm_file: Path) -> None:
    with pytest.raises(DiffLensError, match="the side of its images is not known: give --image-size"):
        load_backbone(str(adm_file), num_head_channels=16)
    with pytest.raises(DiffLensError, match="give --num-heads or --num-head-channels"):
        load_backbone(str(adm_file), num_head_channels=16, num_heads=2, image_size=16)


def test_raw_and_averaged_weights_in_one_file(adm_file: Path, tmp_path: Path) -> None:
    raw = torch.load(adm_file, weights_only=True)
    averaged = {name: tensor + 1 for name, tensor in raw.items()}
    torch.save({"model": raw, "ema": averaged, "opt": {"lr": 1}}, tmp_path / "both.pt")
    torch.save(averaged, tmp_path / "averaged.pt")
    read = partial(load_backbone, num_head_channels=16, image_size=16)
    expected = {"raw": read(str(adm_file)).fingerprint(), "ema": read(tmp_path / "averaged.pt").fingerprint()}
    both = tmp_path / "both.pt"
    assert {name: read(both, weights=name).fingerprint() for name in expected} == expected
    assert read(both).fingerprint() == expected["ema"]
    with pytest.raises(DiffLensError, match="does not hold raw and averaged weights: leave out --weights"):
        read(adm_file, weights="ema")


def test_random_keeps_architecture_and_schedule_but_no_weights(backbone_folder: Path) -> None:
    trained, random = load_backbone(str(backbone_folder)), load_backbone(f"random:{backbone_folder}")
    assert isinstance(random, UNetBackbone)
    assert random.blocks == trained.blocks
    assert random.spec == f"random:{backbone_folder}"
    pairs = zip(trained.named_parameters(), random.parameters(), strict=True)
    different = [name for (name, a), b in pairs if not torch.equal(a, b)]
    assert "unet.conv_in.weight" in different
    assert random.fingerprint() == load_backbone(f"random:{backbone_folder}").fingerprint()


def test_pixels() -> None:
    backbone = load_backbone("pixels:1x28")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(backbone.features(images, 0, [1])[1], images)
    assert (backbone.process.bounds, backbone.block(1).channels) == ((0, 0), 1)
    assert load_backbone("pixels").image_size == 32


def broken(folder: Path, tmp_path: Path, change: str) -> Path:
    """Return a copy of a diffusers folder with one fault."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights, config = copy / "diffusion_pytorch_model.safetensors", copy / "config.json"
    if change == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif change == "missing key":
        state = load_file(weights)
        del state["conv_in.weight"]
        save_file(state, weights, {"format": "pt"})
    elif change == "other class":
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"})
        )
    elif change == "broken json":
        config.write_text("{")
    elif change == "no weights":
        weights.unlink()
    elif change == "other size":
        config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [8, 32]}))
    elif change == "unknown scheduler":
        (copy / "scheduler_config.json").write_text(json.dumps({"_class_name": "KarrasVeScheduler"}))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", "cannot be loaded"),
        ("missing key", "do not belong to its config.json: 1 parameter is missing.*conv_in.weight"),
        ("other class", "do not belong to its config.json"),
        ("broken json", "not readable JSON"),
        ("no weights", "cannot be loaded"),
        ("other size", "cannot be loaded|do not belong"),
        ("unknown scheduler", "KarrasVeScheduler cannot be read"),
    ],
)
def test_folders_that_are_not_what_they_claim(
    backbone_folder: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        load_backbone(str(broken(backbone_folder, tmp_path, change)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no-such-thing", "no backbone 'no-such-thing'.* known are fashion"),
        ("./missing.pt", "no such file or folder"),
        ("/nowhere/at/all", "no such file or folder"),
        ("pixels:2x8", "write pixels or pixels:1x28"),
        ("random:", "no backbone 'random:'"),
    ],
)
def test_names_that_mean_nothing(spec: str, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        load_backbone(spec)


def test_a_network_in_memory_is_no_name() -> None:
    with pytest.raises(DiffLensError, match="a name or a path, not a Conv2d: save a pipeline"):
        load_backbone(torch.nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"not a diffusers model: there is no config\.json"):
        load_backbone(str(tmp_path))


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiffLensError, match=r"no backbone 'somebody/something'.* the hub does not give it"):
        load_backbone("somebody/something")


@pytest.mark.parametrize("spec", ["fashion", "pixels", "random:fashion"])
def test_options_of_checkpoints_are_for_checkpoints(spec: str) -> None:
    with pytest.raises(DiffLensError, match=r"no checkpoint file.*leave out --num-head-channels"):
        load_backbone(spec, num_head_channels=32)
    with pytest.raises(DiffLensError, match="no checkpoint file"):
        load_backbone(spec, noise_schedule="squaredcos_cap_v2")


def test_pixels_of_another_size() -> None:
    assert load_backbone("pixels:1x28", image_size=40).spec == "pixels:1x40"


def test_a_network_that_is_told_sigma_is_refused(tmp_path: Path) -> None:
    UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        time_embedding_type="fourier",
    ).save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(DiffLensError, match=r"sigma as its time .* DDPMScheduler does not tell it"):
        load_backbone(str(tmp_path))


def test_a_scheduler_that_is_not_known_is_refused_by_name(backbone_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone_folder, tmp_path / "copy")
    KarrasVeScheduler().save_pretrained(tmp_path / "copy")
    with pytest.raises(DiffLensError, match="KarrasVeScheduler cannot be read"):
        load_backbone(str(tmp_path / "copy"))


def test_zero_terminal_snr_is_not_ignored(backbone_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone_folder, tmp_path / "copy")
    DDIMScheduler(rescale_betas_zero_snr=True).save_pretrained(tmp_path / "copy")
    backbone = load_backbone(str(tmp_path / "copy"))
    images, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    assert torch.equal(backbone.add_noise(images, 999, noise), noise)
    with pytest.raises(DiffLensError, match="zero terminal SNR"):
        sample(backbone, 1, steps=2)


def test_only_weights_that_are_read_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "README.md"]
    read += [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    read += [
        "text_encoder/model.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
    ]
    others = [
        "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
    ]
    others += [f"unet/diffusion_pytorch_model.{kind}.safetensors" for kind in ("fp16", "non_ema")]
    asked: list[str] = []

    def download(spec: str, allow_patterns: list[str]) -> str:
        asked.extend(
            huggingface_hub.utils.filter_repo_objects([*read, *others], allow_patterns=allow_patterns)
        )
        raise OSError("stopped here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DiffLensError, match="stopped here"):
        load_backbone("owner/name")
    assert asked == read


def test_parts_without_safetensors_come_from_the_hub_as_bin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ["unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin"]
    held += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"]
    held += [f"text_encoder/{name}" for name in ("config.json", "pytorch_model-00001-of-00002.bin")]

    def download(spec: str, allow_patterns: list[str]) -> str:
        for name in huggingface_hub.utils.filter_repo_objects(held, allow_patterns=allow_patterns):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DiffLensError):  # these files hold no network
        load_backbone("owner/name")
    read = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert {*held} - read == {"unet/diffusion_pytorch_model.fp16.bin", "vae/diffusion_pytorch_model.bin"}


def test_weights_beside_another_variant_in_another_format(backbone_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone_folder, tmp_path / "copy")
    expected = load_backbone(tmp_path / "copy").fingerprint()
    whole = tmp_path / "copy" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(whole), whole.with_suffix(".bin"))
    whole.rename(whole.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_backbone(tmp_path / "copy").fingerprint() == expected


def test_a_folder_may_begin_with_pixels(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(backbone_folder, tmp_path / "pixels-ddpm")
    monkeypatch.chdir(tmp_path)
    assert not is_pixels("pixels-ddpm")
    assert [*map(is_pixels, ("pixels", "pixels:3x16"))] == [True, True]
    assert load_backbone("pixels-ddpm").fingerprint() == load_backbone(backbone_folder).fingerprint()
    with pytest.raises(DiffLensError, match="is not a pixel backbone"):
        load_backbone("pixels:1x\u00b2")
