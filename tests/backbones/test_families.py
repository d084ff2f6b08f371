"""Every family against diffusers' own networks and pipelines, on small random folders.

The maps of the walk are those of the network's own forward, and the network is fed, told and conditioned as
by the family's own pipeline.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from difflens import DiffusionBackbone
from difflens.backbones.transformer import TransformerBackbone
from difflens.backbones.unet import UNetBackbone
from tests.helpers.every import FAMILIES, TEXT, write


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def folder(root: Path) -> Callable[[str], Path]:
    return lambda name: Path(write(name, root).spec)


@pytest.fixture(scope="module")
def load(root: Path) -> Callable[..., Any]:
    return lambda name, **options: replace(write(name, root), **options).load()


def x_t(backbone: DiffusionBackbone, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    side = backbone.image_size
    images = torch.rand(count, backbone.in_channels, side, side, generator=generator) * 2 - 1
    x_0 = backbone.encode(images)
    noise = torch.randn(x_0.shape, generator=generator)
    return backbone.add_noise(x_0, backbone.defaults.noise_step, noise)


def own_maps(backbone: DiffusionBackbone, x: Tensor) -> dict[int, Tensor]:
    """Every block's map, from hooks on one call of the network's own forward."""
    seen: dict[int, Tensor] = {}
    handles = []
    if isinstance(backbone, UNetBackbone):
        # the input of the next block begins with the channels of this block's map
        units = backbone._units
        after: list[nn.Module] = [*(unit.modules[0] for unit in units[1:]), backbone.unet.conv_norm_out]
        for block, module in zip(backbone.blocks, after, strict=True):

            def entering(_: Any, given: Any, index: int = block.index, count: int = block.channels) -> None:
                seen[index] = given[0][:, :count].clone()

            handles.append(module.register_forward_pre_hook(entering))
        backbone.denoise(x, backbone.defaults.noise_step)
    else:
        assert isinstance(backbone, TransformerBackbone)
        lists = ("transformer_blocks", "single_transformer_blocks")
        own = [each for name in lists for each in getattr(backbone.network, name, ())]
        side = backbone.image_size // backbone.blocks[0].stride
        for index, module in enumerate(own, start=1):

            def leaving(_: Any, given: Any, output: Any, index: int = index) -> None:
                tokens = output[-1] if isinstance(output, tuple) else output
                seen[index] = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side).clone()

            handles.append(module.register_forward_hook(leaving))
        backbone.denoise(x, backbone.defaults.noise_step)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_map_is_that_of_the_networks_own_forward(
    load: Callable[..., DiffusionBackbone], name: str
) -> None:
    backbone = load(name)
    x, level = x_t(backbone), backbone.defaults.noise_step
    expected = own_maps(backbone, x)
    maps = backbone.features(x, level, [block.index for block in backbone.blocks])
    assert list(maps) == list(expected)
    for index, feature in maps.items():
        assert torch.equal(feature, expected[index]), f"block {index}"
        assert torch.equal(backbone.features(x, level, [index])[index], feature), f"block {index} alone"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_early_exit_runs_no_later_block(load: Callable[..., DiffusionBackbone], name: str) -> None:
    backbone = load(name)
    ran = []
    for block in backbone.blocks:
        last = backbone.modules_of(block.index)[-1]
        last.register_forward_hook(lambda *_, index=block.index: ran.append(index))
    middle = (len(backbone.blocks) + 1) // 2
    backbone.features(x_t(backbone), backbone.defaults.noise_step, [middle])
    assert ran == list(range(1, middle + 1))
    ran.clear()
    backbone.denoise(x_t(backbone), backbone.defaults.noise_step)
    assert len(ran) == len(backbone.blocks)  # the cut is undone


@pytest.mark.parametrize("name", ["DiT", "PixArt", "SD3", "Flux", "DiT.pt", "SiT.pt"])
@torch.no_grad()
def test_the_tap_adaln_is_what_the_next_block_begins_with(
    load: Callable[..., DiffusionBackbone], name: str
) -> None:
    """The input of the next block's attention, or of the output layer, in the network's own forward."""
    backbone = load(name, tap="adaln")
    x, level = x_t(backbone), backbone.defaults.noise_step
    network, count = backbone.network, len(backbone.blocks)
    lists = ("transformer_blocks", "single_transformer_blocks")
    own = [each for part in lists for each in getattr(network, part, ())]
    output = network.proj_out_2 if hasattr(network, "proj_out_2") else network.proj_out
    seen: dict[int, Tensor] = {}
    handles = []
    for index, block in enumerate(own[1:], start=1):
        attention = block.attn1 if hasattr(block, "attn1") else block.attn

        def attended(_: Any, args: Any, kwargs: Any, index: int = index) -> None:
            seen[index] = args[0] if args else kwargs["hidden_states"]

        handles.append(attention.register_forward_pre_hook(attended, with_kwargs=True))
    handles.append(output.register_forward_pre_hook(lambda _, args: seen.update({count: args[0]})))
    backbone.denoise(x, level)
    for handle in handles:
        handle.remove()
    maps = backbone.features(x, level, range(1, count + 1))
    for index, feature in maps.items():
        tokens = feature.flatten(2).transpose(1, 2)
        expected = seen[index][:, -tokens.shape[1] :]  # Flux: the text's tokens come first
        torch.testing.assert_close(tokens, expected, msg=f"block {index}")


@torch.no_grad()
def test_the_tap_norm_is_a_layer_norm_without_parameters(load: Callable[..., DiffusionBackbone]) -> None:
    raw, normed = load("DiT"), load("DiT", tap="norm")
    x = x_t(raw)
    expected, feature = (each.features(x, 150, [2])[2] for each in (raw, normed))
    torch.testing.assert_close(feature.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    deviation = expected.std(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(
        feature, (expected - expected.mean(1, keepdim=True)) / deviation, rtol=1e-3, atol=1e-4
    )


def recorded(pipeline: Any, network: nn.Module, **call: Any) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
    """Run a pipeline and return what its network is fed first: sample, time, further arguments."""
    calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def entering(_: Any, args: Any, kwargs: Any) -> None:
        given = dict(kwargs)
        sample = args[0] if args else given.pop("sample", given.pop("hidden_states", None))
        time = args[1] if len(args) > 1 else given.pop("timestep")
        calls.append((sample, torch.as_tensor(time), given))

    handle = network.register_forward_pre_hook(entering, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**call)
    handle.remove()
    return calls[0]


def assert_fed(backbone: DiffusionBackbone, x: Tensor, level: float, call: Any) -> None:
    """The backbone feeds its network, for x_t at a level, what the pipeline fed it."""
    sample, time, given = call
    entering, told, conditions = backbone.fed(x, level)
    torch.testing.assert_close(entering, sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(told.float(), time.float().expand(len(told)), rtol=1e-6, atol=1e-4)
    flat = conditions.pop("added_cond_kwargs", {}) | conditions
    theirs = {**given, **(given.get("added_cond_kwargs") or {})}
    for name, value in flat.items():
        torch.testing.assert_close(value, theirs[name].to(value.dtype), msg=name)
    tensors = {name for name, value in theirs.items() if isinstance(value, Tensor)}
    assert tensors - {*flat} <= {"img_ids", "txt_ids"}


@pytest.mark.parametrize("name", ["LDM", "DiT", "consistency model", "NCSN++"])
def test_the_network_is_fed_as_by_its_pipeline(
    folder: Callable[[str], Path],
    load: Callable[..., DiffusionBackbone],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    backbone = load(name, **({"condition": "3"} if name == "DiT" else {}))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(1, *backbone.input_shape, generator=generator)
    module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: drawn)
    call: dict[str, Any] = {"num_inference_steps": 10, "output_type": "np"}
    if name == "DiT":
        call |= {"class_labels": [3], "guidance_scale": 1.0}
    fed = recorded(pipeline, backbone_network(pipeline), **call)
    scheduler = pipeline.scheduler
    if name in ("LDM", "DiT"):
        level: float = int(scheduler.timesteps[0])
    else:
        level = float(scheduler.sigmas[0])
    assert_fed(backbone, drawn * scheduler.init_noise_sigma, level, fed)


def backbone_network(pipeline: Any) -> nn.Module:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


@pytest.mark.parametrize("name", TEXT)
def test_a_text_network_is_fed_as_by_its_pipeline(
    folder: Callable[[str], Path], load: Callable[..., DiffusionBackbone], name: str
) -> None:
    """With the empty prompt and without guidance, at the first step of sampling."""
    backbone = load(name)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder(name))
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(1, *backbone.input_shape, generator=generator)
    sides = {"height": backbone.image_size, "width": backbone.image_size}
    call: dict[str, Any] = {"prompt": "", "num_inference_steps": 10, "output_type": "latent", **sides}
    tokens = drawn
    if name == "Flux":
        tokens = pipeline._pack_latents(drawn, 1, *backbone.input_shape)
    else:
        call["guidance_scale"] = 1.0
    if name == "PixArt":
        call["use_resolution_binning"] = False
    sample, time, given = recorded(pipeline, backbone_network(pipeline), latents=tokens.clone(), **call)
    scheduler = pipeline.scheduler
    if name in ("SD3", "Flux"):
        level: float = float(scheduler.sigmas[0])
        time = time * (1000 if name == "Flux" else 1)
    else:
        level = round(float(scheduler.timesteps[0]))
    x = drawn
    if name == "SDXL":  # Euler's latents are x_0 + sigma noise, and its network's input is x_t
        x = drawn * scheduler.init_noise_sigma / (float(scheduler.sigmas[0]) ** 2 + 1) ** 0.5
    elif name == "Flux":
        assert torch.equal(sample, tokens)
        sample = drawn
    assert_fed(backbone, x, level, (sample, time, given))
    if name == "Flux":
        with torch.no_grad():
            expected = backbone.network(
                tokens,
                timestep=time / 1000,
                **{**given, "return_dict": False, "joint_attention_kwargs": None},
            )[0]
            output = backbone.denoise(drawn, level)
        packed = pipeline._pack_latents(output, 1, *output.shape[1:])
        torch.testing.assert_close(packed, expected)


def test_directions_of_time_of_files_in_dits_layout(load: Callable[..., DiffusionBackbone]) -> None:
    x_0, noise = torch.full((1, 4, 4, 4), 2.0), torch.full((1, 4, 4, 4), 5.0)
    assert float(load("SiT.pt").add_noise(x_0, 0.25, noise).mean()) == 0.25 * 2 + 0.75 * 5
    assert float(load("REPA.pt").add_noise(x_0, 0.25, noise).mean()) == 0.75 * 2 + 0.25 * 5
    assert load("DiT.pt").process.bounds == (0, 999)
    assert len({load(name).fingerprint() for name in ("DiT.pt", "SiT.pt", "REPA.pt")}) == 3


@torch.no_grad()
def test_a_fourier_embedding_keeps_its_frequencies(tmp_path: Path) -> None:
    """In bfloat16 they would tell another time."""
    exact, half = (write("NCSN++", tmp_path).load() for _ in range(2))
    assert isinstance(exact, UNetBackbone)
    assert isinstance(half, UNetBackbone)
    half.convert(torch.bfloat16)
    assert torch.equal(half.unet.time_proj.weight, exact.unet.time_proj.weight)
    sigma = torch.tensor([0.1, 20.0])
    assert torch.equal(half.unet.time_proj(sigma), exact.unet.time_proj(sigma))
    x_t, last = torch.randn(2, *exact.input_shape), len(exact.blocks)
    maps = [each.features(x_t, exact.process.bounds[0], [last])[last].float() for each in (exact, half)]
    assert (maps[1] - maps[0]).norm() < 0.05 * maps[0].norm()
