"""Conditions: what each choice of --condition gives the network, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

from difflens import DiffLensError, DiffusionBackbone, load_backbone
from difflens.backbones.unet import UNetBackbone
from tests.helpers import families, pipelines
from tests.helpers.adm import Adm
from tests.helpers.cli import run
from tests.helpers.dit import Dit
from tests.helpers.images import make_image_tree


def load(spec: Path | str, **options: Any) -> DiffusionBackbone:
    backbone = load_backbone(str(spec), **options)
    assert isinstance(backbone, DiffusionBackbone)
    return backbone


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write_unet(tmp_path_factory.mktemp("classes"), num_class_embeds=5)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.write_stable_diffusion(tmp_path_factory.mktemp("sd"))


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_class_is_the_networks_own(classes: Path) -> None:
    network = UNet2DModel.from_pretrained(classes).eval()
    backbone = load(classes, condition="3")
    assert backbone.condition is not None
    assert backbone.condition.name == "class 3"
    expected = network(X, 150, class_labels=torch.tensor([3, 3])).sample
    assert torch.equal(backbone.denoise(X, 150), expected)


def test_the_default_is_stated_in_the_report(classes: Path, tmp_path: Path) -> None:
    data = make_image_tree(tmp_path / "images")
    place = ("--blocks", 2, "--noise-steps", 100, "--epochs", 1, "--device", "cpu")
    assert run("probe", "--backbone", classes, "--data", data, *place, "--out", tmp_path / "run") == 0
    assert "mean of 5 class embeddings" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("condition", "name"), [(None, "mean of 5 class embeddings"), ("zero", "zero")])
@torch.no_grad()
def test_mean_and_zero(classes: Path, condition: str | None, name: str) -> None:
    """All rows of the network's embedding are set to the mean, or to zero."""
    network = UNet2DModel.from_pretrained(classes).eval()
    rows = network.class_embedding.weight
    rows.copy_(rows.mean(0, keepdim=True).expand_as(rows) if condition is None else torch.zeros_like(rows))
    backbone = load(classes, condition=condition)
    assert backbone.condition is not None
    assert name in backbone.condition.name
    expected = network(X, 150, class_labels=torch.tensor([2, 4])).sample
    torch.testing.assert_close(backbone.denoise(X, 150), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_classes_that_are_told_as_a_time(tmp_path: Path) -> None:
    folder = families.write_unet(tmp_path, class_embed_type="timestep")
    network = UNet2DModel.from_pretrained(folder).eval()
    expected = network(X, 150, class_labels=torch.tensor([40, 40])).sample
    assert torch.equal(load(folder, condition="40").denoise(X, 150), expected)
    unconditional = load(folder)
    assert unconditional.condition is not None
    assert unconditional.condition.name == "class embedding of zero"
    assert not torch.equal(unconditional.denoise(X, 150), expected)
    assert unconditional.features(X, 150, [5])[5].isfinite().all()


@torch.no_grad()
def test_embeddings_that_are_given_from_outside_are_zero(tmp_path: Path) -> None:
    folder = families.write_unet(tmp_path, class_embed_type="identity")
    network = UNet2DModel.from_pretrained(folder).eval()
    expected = network(X, 150, class_labels=torch.zeros(2, 32)).sample
    assert torch.equal(load(folder).denoise(X, 150), expected)
    with pytest.raises(DiffLensError, match="takes zero: its class embedding is given from outside"):
        load(folder, condition="3")


@torch.no_grad()
def test_class_conditional_adm(tmp_path: Path) -> None:
    adm = Adm(classes=7)
    state = adm.random_state()
    path = tmp_path / "adm.pt"
    torch.save(state, path)
    options: dict[str, Any] = {"num_head_channels": adm.head_channels, "image_size": 16}
    steps = torch.tensor([20, 20])
    by_class = load(path, condition="4", **options)
    torch.testing.assert_close(
        by_class.denoise(X, 20), adm.forward(state, X, steps, label=4), atol=1e-4, rtol=0
    )
    mean = {**state, "label_emb.weight": state["label_emb.weight"].mean(0, keepdim=True)}
    torch.testing.assert_close(
        load(path, **options).denoise(X, 20), adm.forward(mean, X, steps, label=0), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_classes_of_dit(tmp_path: Path) -> None:
    folder = families.write_dit(tmp_path)
    network = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    x = torch.randn(2, 4, 8, 8)

    def expected(number: int) -> torch.Tensor:
        labels = torch.tensor([number, number])
        return network(x, timestep=torch.tensor([150, 150]), class_labels=labels).sample

    assert torch.equal(load(folder).denoise(x, 150), expected(10))
    assert torch.equal(load(folder, condition="null").denoise(x, 150), expected(10))
    assert torch.equal(load(folder, condition="3").denoise(x, 150), expected(3))
    for block in network.transformer_blocks:
        rows = block.norm1.emb.class_embedder.embedding_table.weight
        rows.copy_(rows[:10].mean(0, keepdim=True).expand_as(rows))
    torch.testing.assert_close(load(folder, condition="mean").denoise(x, 150), expected(0))
    for block in network.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.weight.zero_()
    torch.testing.assert_close(load(folder, condition="zero").denoise(x, 150), expected(0))


@torch.no_grad()
def test_conditions_of_a_file_in_dits_layout(tmp_path: Path) -> None:
    """Its blocks share one table of classes."""
    dit = Dit()
    state = dit.random_state()
    torch.save(state, tmp_path / "dit.pt")
    vae = families.write_autoencoder(tmp_path / "vae")
    options: dict[str, Any] = {
        "family": "dit",
        "autoencoder": str(vae),
        "num_head_channels": dit.width // dit.heads,
    }
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0])
    null = load(tmp_path / "dit.pt", **options).denoise(x, 500)
    labels = torch.full((2,), dit.classes)
    torch.testing.assert_close(null, dit.forward(state, x, t, labels)[0], atol=1e-5, rtol=1e-4)
    table = "y_embedder.embedding_table.weight"
    mean = {**state, table: state[table][: dit.classes].mean(0, keepdim=True).expand_as(state[table])}
    averaged = load(tmp_path / "dit.pt", condition="mean", **options).denoise(x, 500)
    torch.testing.assert_close(averaged, dit.forward(mean, x, t, labels)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_text_embedding_of_zeros(stable_diffusion: Path) -> None:
    backbone = load(stable_diffusion, condition="zero")
    x = torch.randn(2, 4, 16, 16)
    zeros = torch.zeros(2, 77, 16)
    expected = backbone.network(x, torch.tensor([150, 150]), encoder_hidden_states=zeros).sample
    assert torch.equal(backbone.denoise(x, 150), expected)


def test_what_is_refused(classes: Path, stable_diffusion: Path, tmp_path: Path) -> None:
    plain = families.write_unet(tmp_path / "plain")
    dit = families.write_dit(tmp_path / "dit")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (plain, {"condition": "3"}, "is unconditional: leave out --condition"),
        (classes, {"condition": "null"}, "no row that is known to be its null class"),
        (classes, {"condition": "5"}, "has no class 5: its classes are 0 to 4"),
        (classes, {"condition": "cat"}, "no condition 'cat': --condition takes mean, zero or a class"),
        (classes, {"condition": "-1"}, "no condition '-1'"),
        (dit, {"condition": "11"}, "null, mean, zero or a class from 0 to 9"),
        (stable_diffusion, {"condition": "3"}, "null .the empty prompt. or zero"),
        (classes, {"tap": "adaln"}, "is a U-Net, whose maps are read as they are"),
        ("pixels", {"condition": "mean"}, "pixels is no diffusion network: leave out --condition"),
        ("random:timm:test_vit", {"tap": "norm"}, "is no diffusion network: leave out --tap"),
    ]
    for spec, options, message in cases:
        with pytest.raises(DiffLensError, match=message):
            load_backbone(str(spec), **options)


def test_no_text_encoder_runs_after_the_first_run(stable_diffusion: Path, tmp_path: Path) -> None:
    """A run and its model keep the embedding: prediction and resuming need no text encoder."""
    folder = shutil.copytree(stable_diffusion, tmp_path / "sd")
    images = make_image_tree(tmp_path / "images", per_class=4, side=32)
    probe = ("probe", "--backbone", folder, "--data", f"folder:{images}", "--head", "linear", "--pool", 1)
    probe += ("--epochs", 1, "--out", tmp_path / "run")
    assert run(*probe) == 0
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    with pytest.raises(DiffLensError, match=r"text_encoder|tokenizer"):
        load_backbone(str(folder))
    assert run("predict", tmp_path / "run", next(images.glob("val/*/*"))) == 0
    assert run(*probe, "--resume") == 0
    report = (tmp_path / "run" / "report.html").read_text()
    assert "empty prompt" in report
    assert "variance preserving" in report
    assert "scaled_linear betas" in report


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (pipelines.write_stable_diffusion_xl, {}),
        (pipelines.write_pixart_alpha, {"sample_size": 128}),
        (pipelines.write_flux, {}),
    ],
)
def test_zero_is_for_the_text_alone(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, Any]
) -> None:
    """Sizes of the image and guidance are those that come with the empty prompt."""
    folder = write(tmp_path / "pipeline", **changes)
    empty, zero = (load(folder, condition=name, image_size=32).condition for name in ("null", "zero"))
    assert empty is not None
    assert zero is not None
    told = {"time_ids", "resolution", "aspect_ratio", "guidance"}
    found = [name for name in empty.tensors if name.rpartition(".")[2] in told]
    assert found
    for name in found:
        assert torch.equal(zero.tensors[name], empty.tensors[name])
    assert not zero.tensors["encoder_hidden_states"].any()
    backbone = load(folder, condition="zero", image_size=32)
    x_t = torch.randn(1, *backbone.input_shape)
    assert backbone.denoise(x_t, backbone.defaults.noise_step).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("write", "changes", "told"),
    [
        (pipelines.write_stable_diffusion_xl, {}, {"time_ids": [64, 64, 0, 0, 64, 64]}),
        (pipelines.write_pixart_alpha, {"sample_size": 128}, {"resolution": [64, 64], "aspect_ratio": [1]}),
    ],
)
def test_a_network_is_told_the_size_of_the_images_that_it_reads(
    tmp_path: Path, write: Callable[..., Path], changes: dict[str, Any], told: dict[str, list[int]]
) -> None:
    """Not that of the images for which it was loaded."""
    folder = write(tmp_path / "pipeline", **changes)
    backbone, other = (load(folder, condition="zero", image_size=side) for side in (32, 64))
    x_t = torch.randn(2, *other.input_shape)
    _, _, given = backbone.fed(x_t, 5)
    for name, values in told.items():
        assert given["added_cond_kwargs"][name].tolist() == [values, values]
    if isinstance(backbone, UNetBackbone):
        assert torch.equal(backbone.denoise(x_t, 5), other.denoise(x_t, 5))


@torch.no_grad()
def test_conditions_have_the_networks_precision(tmp_path: Path) -> None:
    backbone = load(pipelines.write_stable_diffusion_xl(tmp_path), condition="zero", image_size=32)
    backbone.convert(torch.bfloat16)
    maps = backbone.features(torch.randn(1, *backbone.input_shape), 5, [1])
    assert maps[1].isfinite().all()


def test_embedded_guidance_comes_with_zeros_too(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion(tmp_path, time_cond_proj_dim=8)
    empty, zero = (load(folder, condition=name).condition for name in ("null", "zero"))
    assert empty is not None
    assert zero is not None
    assert torch.equal(zero.tensors["timestep_cond"], empty.tensors["timestep_cond"])


def test_an_aesthetic_score_is_refused(tmp_path: Path) -> None:
    folder = pipelines.write_stable_diffusion_xl(tmp_path / "xl", projection_class_embeddings_input_dim=60)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "requires_aesthetics_score": True}))
    with pytest.raises(DiffLensError, match="is told an aesthetic score of images"):
        load(folder, condition="zero")
    refiner = {"projection_class_embeddings_input_dim": 2560, "addition_time_embed_dim": 256}
    folder = pipelines.write_stable_diffusion_xl(tmp_path / "refiner", **refiner)
    with pytest.raises(DiffLensError, match="is told an aesthetic score of images"):
        load(folder, condition="zero")
