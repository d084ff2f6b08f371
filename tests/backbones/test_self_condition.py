"""Self-conditioned U-Nets: what they compute, the walk, the file beside the weights."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens import DiffLensError, load_backbone, sample
from difflens.backbones.self_condition import SELF_CONDITION, SelfConditionedUNet2DModel
from difflens.backbones.unet import UNetBackbone
from difflens.pretraining import networks
from difflens.processes.schedulers import process_of
from tests.helpers import families
from tests.helpers.damage import whole


def pair(name: str = "tiny", **changes: Any) -> tuple[UNetBackbone, UNetBackbone]:
    """A plain network and the self-conditioned one of the same seed."""
    fields = {**networks.unet_config(name), **changes}
    made = []
    for kind in (UNet2DModel, SelfConditionedUNet2DModel):
        torch.manual_seed(0)
        made.append(UNetBackbone(kind(**fields), process_of(), "test"))
    return made[0], made[1]


def trained(**changes: Any) -> UNetBackbone:
    """A self-conditioned network whose projection is as after a training."""
    backbone = pair(**changes)[1]
    torch.nn.init.normal_(backbone.unet.self_condition.weight)
    torch.nn.init.normal_(backbone.unet.self_condition.bias)
    return backbone


def read(backbone: UNetBackbone, x: Tensor, t: Any = 50) -> dict[int, Tensor]:
    return backbone.features(x, t, range(1, len(backbone.blocks) + 1))


def of_role(backbone: UNetBackbone, role: Any) -> list[int]:
    return [block.index for block in backbone.of_role(role)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return families.write_self_conditioned(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny", {}),
        ("photos-32", {}),
        (
            "tiny",
            {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "default"},
        ),
    ],
)
@torch.no_grad()
def test_it_begins_as_the_plain_network(name: str, changes: dict[str, Any]) -> None:
    plain, own = pair(name, **changes)
    x, t = torch.randn(2, *plain.input_shape), torch.tensor([3, 700])
    assert torch.equal(own.denoise(x, t), plain.denoise(x, t))
    assert torch.equal(own.unet(x, 3).sample, plain.unet(x, 3).sample)
    assert torch.equal(own.unet(x, 3, return_dict=False)[0], plain.unet(x, 3).sample)
    maps = read(own, x, t)
    for index, expected in read(plain, x, t).items():
        assert torch.equal(maps[index], expected), index
    assert own.blocks == plain.blocks


@torch.no_grad()
def test_forward_and_walk_are_the_equation() -> None:
    """Against the forward pass of diffusers, whose decoder's levels are handed another embedding."""
    backbone = trained()
    plain = pair()[0].unet
    x, seen = torch.randn(2, 3, 16, 16), {}
    projection = backbone.unet.self_condition

    def middle(_: Any, given: Any, h: Tensor) -> None:
        pooled = h.flatten(2).mean(2)
        centred = pooled - pooled.mean(1, keepdim=True)
        normalised = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        seen["added"] = normalised @ projection.weight.T + projection.bias

    def level(_: Any, given: Any) -> tuple[Any, ...]:
        hidden, skips, embedding = given
        return hidden, skips, embedding + seen["added"]

    plain.mid_block.register_forward_hook(middle)
    for each in plain.up_blocks:
        each.register_forward_pre_hook(level)
    plain.conv_norm_out.register_forward_pre_hook(lambda _, given: seen.update(last=given[0].clone()))
    expected = plain(x, 50).sample
    torch.testing.assert_close(backbone.denoise(x, 50), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(pair()[0].denoise(x, 50), expected, atol=1e-2)
    last = len(backbone.blocks)
    torch.testing.assert_close(backbone.features(x, 50, [last])[last], seen["last"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_decoder_alone_depends_on_it() -> None:
    x = torch.randn(2, 3, 16, 16)
    plain, own = pair()[0], trained()
    before, after = read(plain, x), read(own, x)
    for index in (*of_role(plain, "encoder"), *of_role(plain, "middle")):
        assert torch.equal(before[index], after[index])
    for index in of_role(plain, "decoder"):
        assert not torch.allclose(before[index], after[index], atol=1e-3)


def test_the_first_block_of_the_decoder_is_the_first_to_use_it() -> None:
    backbone = trained()
    own = {id(parameter) for parameter in backbone.unet.self_condition.parameters()}
    users = [
        block.index for block in backbone.blocks if own & {*map(id, backbone.parameters_of(block.index))}
    ]
    assert users == of_role(backbone, "decoder")[:1]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_second_pass_reads_the_middle_of_the_second_pass(checkpoint: bool) -> None:
    """Feedback changes the middle's map, so the decoder's embedding; its gradient flows through both."""
    backbone = trained()
    x, decoder = torch.randn(2, 3, 16, 16), of_role(backbone, "decoder")
    mirrors = {block: backbone.block(backbone.block(block).mirror or 0) for block in decoder}
    scale = torch.ones((), requires_grad=True)

    def respond(maps: dict[int, Tensor]) -> dict[int, Tensor]:
        return {
            mirror.index: scale
            * torch.nn.functional.interpolate(maps[block].mean(1, keepdim=True), 16 // mirror.stride).expand(
                -1, mirror.channels, -1, -1
            )
            for block, mirror in mirrors.items()
        }

    once = backbone.features_with_feedback(x, 50, decoder[-1:], decoder, respond, checkpoint=checkpoint)
    sent = respond({index: maps.detach() for index, maps in backbone.features(x, 50, decoder).items()})
    twice = backbone.features(x, 50, decoder[-1:], sent)
    torch.testing.assert_close(once[decoder[-1]], twice[decoder[-1]])
    gradients = [torch.autograd.grad(maps[decoder[-1]].square().sum(), scale)[0] for maps in (once, twice)]
    torch.testing.assert_close(gradients[0], gradients[1])
    # the embedding of the first pass would give another map
    moved: list[Tensor] = []
    projection = backbone.unet.self_condition
    projection.register_forward_hook(lambda _, given, output: moved.append(output))
    backbone.features_with_feedback(x, 50, decoder[-1:], decoder, respond)
    first, second = moved
    assert not torch.allclose(first, second, atol=1e-2)
    held = projection.register_forward_hook(lambda *_: first)
    old = backbone.features(x, 50, decoder[-1:], sent)[decoder[-1]]
    held.remove()
    assert not torch.allclose(old, once[decoder[-1]], atol=1e-3)


@torch.no_grad()
def test_the_folder_is_read_back(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    backbone = load_backbone(str(folder))
    assert capfd.readouterr().err == ""
    torch.manual_seed(0)
    network = SelfConditionedUNet2DModel(**families.UNET)
    torch.nn.init.normal_(network.self_condition.weight)
    written = UNetBackbone(network, process_of(), "test")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(backbone.denoise(x, 50), written.denoise(x, 50))
    for index, maps in read(written, x).items():
        assert torch.equal(read(backbone, x)[index], maps)
    assert backbone.fingerprint() == written.fingerprint()
    # the network's folder alone
    alone = shutil.copytree(folder / "unet", tmp_path / "alone")
    assert load_backbone(str(alone)).fingerprint() == backbone.fingerprint()
    assert sorted(path.name for path in (folder / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        SELF_CONDITION,
    ]


def test_the_other_weights_are_those_of_a_plain_network(folder: Path) -> None:
    plain, info = UNet2DModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not any(info.values())
    own = load_backbone(str(folder)).unet.state_dict()
    assert {*own} - {*plain.state_dict()} == {"self_condition.weight", "self_condition.bias"}
    assert all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_pipeline_of_diffusers_refuses_the_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="SelfConditionedUNet2DModel"):
        DDPMPipeline.from_pretrained(folder)


def test_untrained_it_is_the_plain_network(folder: Path) -> None:
    (folder / "unet" / SELF_CONDITION).unlink()  # it needs no weights
    backbone = load_backbone(f"random:{folder}")
    assert not any(parameter.any() for parameter in backbone.unet.self_condition.parameters())


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver", "own"])
def test_images_are_drawn_with_it(folder: Path, sampler: Any) -> None:
    backbone = load_backbone(str(folder))
    drawn = sample(backbone, 2, 4, sampler=sampler)
    assert drawn.isfinite().all()
    torch.nn.init.zeros_(backbone.unet.self_condition.weight)
    assert not torch.allclose(drawn, sample(backbone, 2, 4, sampler=sampler), atol=1e-3)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def resave(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Return what replaces the tensors in the file of a folder."""

    def write(folder: Path) -> None:
        file = folder / "unet" / SELF_CONDITION
        save_file(change(load_file(file)), file)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "unet" / SELF_CONDITION).unlink(), rf"there is no {SELF_CONDITION} in .*unet"),
        (
            resave(lambda own: {**own, "weight": torch.zeros(32, 8)}),
            rf"{SELF_CONDITION} has bias of 32, weight of 32 x 8, and the network needs .*weight of 32 x 16",
        ),
        (resave(lambda own: {"conv_in.weight": torch.zeros(8, 3)}), "has conv_in.weight of 8 x 3, and the"),
        (resave(lambda own: {}), "has no tensors, and the network needs bias of 32, weight of 32 x 16"),
        (
            resave(lambda own: {**own, "bias": own["bias"] * torch.nan}),
            f"{SELF_CONDITION}: bias must hold finite",
        ),
        (
            resave(lambda own: {**own, "bias": own["bias"].long()}),
            f"{SELF_CONDITION}: bias must hold finite",
        ),
        (
            lambda f: edit(f / "unet/config.json", _class_name="UNet2DModel"),
            r"model_index\.json names a SelfConditionedUNet2DModel, and .*config\.json names a UNet2DModel",
        ),
        (
            lambda f: (
                (f / "model_index.json").unlink() or edit(f / "unet/config.json", _class_name="UNet2DModel")
            ),
            rf"{SELF_CONDITION} belongs to a SelfConditionedUNet2DModel, and .* names a UNet2DModel",
        ),
        (
            lambda f: edit(f / "unet/config.json", num_class_embeds=5),
            r"config\.json: .*a self-conditioned network has num_class_embeds None, not 5",
        ),
        (
            lambda f: edit(f / "unet/config.json", mid_block_type=None),
            "a self-conditioned network has mid_block_type UNetMidBlock2D, not None",
        ),
        (
            lambda f: edit(
                f / "unet/config.json",
                down_block_types=["SkipDownBlock2D"] * 2,
                up_block_types=["SkipUpBlock2D"] * 2,
                norm_num_groups=None,
            ),
            "a self-conditioned network has no image path beside its blocks",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(DiffLensError, match=message):
        load_backbone(str(folder))


@pytest.mark.parametrize("kind", [name for name in whole(b"") if name != "a device"])
def test_a_damaged_file_is_named(folder: Path, kind: str) -> None:
    file = folder / "unet" / SELF_CONDITION
    content = whole(file.read_bytes())[kind]
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(DiffLensError, match=SELF_CONDITION):
        load_backbone(str(folder))


def test_the_file_beside_another_network(folder: Path, tmp_path: Path) -> None:
    for name, write in (("dit", families.write_dit), ("unet", families.write_unet)):
        other = write(tmp_path / name)
        home = other / "transformer" if name == "dit" else other
        shutil.copyfile(folder / "unet" / SELF_CONDITION, home / SELF_CONDITION)
        with pytest.raises(DiffLensError, match=f"{SELF_CONDITION} belongs to a SelfConditionedUNet2DModel"):
            load_backbone(str(other))
