"""Checkpoints of DiT, SiT and REPA: parity with a reference, the published sizes, and all bad inputs."""

import re
from collections.abc import Callable

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from difflens.backbones.dit import has_projectors, is_dit, transformer_from_dit
from difflens.errors import DiffLensError
from tests.helpers.adm import Adm
from tests.helpers.dit import XL_256, XL_512, Dit

TINY = Dit()
PROJECTORS = {
    f"projectors.0.{layer}.{leaf}": torch.zeros(2, 2)[: 1 + (leaf == "weight")]
    for layer in (0, 2, 4)
    for leaf in ("weight", "bias")
}
STEPS, FRACTIONS = torch.tensor([500, 0, 999]), torch.tensor([0.5, 0.0, 1.0])


def inputs(dit: Dit) -> tuple[Tensor, Tensor]:
    """Three latents and the labels of the first class, the last class and no class."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, dit.channels, dit.side, dit.side, generator=generator)
    return x, torch.tensor([0, dit.classes - 1, dit.classes])


def run(
    transformer: DiTTransformer2DModel, x: Tensor, t: Tensor, labels: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The output and the output of every block."""
    blocks: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _args, tokens: blocks.append(tokens))
        for block in transformer.transformer_blocks
    ]
    with torch.no_grad():
        out = transformer(x, timestep=t, class_labels=labels).sample
    for hook in hooks:
        hook.remove()
    return out, blocks


def error(
    dit: Dit,
    t: Tensor,
    change: Callable[[DiTTransformer2DModel], object] = lambda transformer: None,
    dtype: torch.dtype = torch.float64,
) -> float:
    """The largest difference from the reference, in units of the largest value, over output and blocks."""
    state, (x, labels) = dit.random_state(), inputs(dit)
    transformer = transformer_from_dit(state, dit.width // dit.heads).to(dtype)
    change(transformer)
    out, blocks = run(transformer, x.to(dtype), t, labels)
    state = {name: value.to(dtype) for name, value in state.items()}
    expected, expected_blocks = dit.forward(state, x.to(dtype), t, labels)
    assert len(blocks) == dit.depth
    assert out.shape == expected.shape == (3, dit.out_channels, dit.side, dit.side)
    assert expected.std() > 0.1
    pairs = zip([out, *blocks], [expected, *expected_blocks], strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


# Parity


VARIANTS = {
    "learned variance": TINY,
    "no learned variance": Dit(learn_sigma=False),
    "other sides": Dit(side=12, width=48, heads=3, depth=2),
    "patches of 4, 3 channels": Dit(patch=4, side=16, channels=3),
    "patches of 1, one head": Dit(patch=1, side=4, heads=1, classes=1),
}


@pytest.mark.parametrize("t", [STEPS, FRACTIONS], ids=["steps", "fractions"])
@pytest.mark.parametrize("dit", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_reference(dit: Dit, t: Tensor) -> None:
    assert error(dit, t) < 1e-10
    assert error(dit, t, dtype=torch.float32) < 1e-5


CHANGES: dict[str, Callable[[DiTTransformer2DModel], object]] = {
    "diffusers' time frequencies": lambda transformer: setattr(
        transformer.transformer_blocks[0].norm1.emb.time_proj, "downscale_freq_shift", 1
    ),
    "epsilon before the attention": lambda transformer: setattr(
        transformer.transformer_blocks[1].norm1.norm, "eps", 1e-5
    ),
    "epsilon before the feed-forward layers": lambda transformer: setattr(
        transformer.transformer_blocks[1].norm3, "eps", 1e-5
    ),
    "epsilon at the end": lambda transformer: setattr(transformer.norm_out, "eps", 1e-5),
    "exact GELU": lambda transformer: setattr(
        transformer.transformer_blocks[1].ff.net[0], "approximate", "none"
    ),
    "heads": lambda transformer: setattr(transformer.transformer_blocks[1].attn1, "heads", 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_comparison_sees_small_changes(change: Callable[[DiTTransformer2DModel], object]) -> None:
    assert error(TINY, STEPS, change) > 1e-7


def test_frequencies_of_diffusers_are_far_off() -> None:
    change = CHANGES["diffusers' time frequencies"]
    assert error(TINY, STEPS, change) > 0.1
    rates = [10000 ** (-torch.arange(128).double() / (128 - shift)) for shift in (0, 1)]
    assert (500 * (rates[0] - rates[1])).abs().max() > 1


@pytest.mark.parametrize("grid", [4, 16, 32])
def test_positions_of_diffusers_are_the_authors(grid: int) -> None:
    dit = Dit(width=64, heads=1, side=2 * grid)
    table = DiTTransformer2DModel(1, 64, num_layers=1, sample_size=2 * grid).pos_embed.pos_embed
    torch.testing.assert_close(table, dit.positions().float(), rtol=0, atol=2e-6)
    # the column is in front: along a row of tokens only the first half changes
    assert torch.equal(table[0, 0, 32:], table[0, 1, 32:])
    assert not torch.equal(table[0, 0, :32], table[0, 1, :32])


def test_without_table_of_positions() -> None:
    dit = Dit(side=32, depth=1)
    state, (x, labels) = dit.random_state(), inputs(dit)
    del state["pos_embed"]
    transformer = transformer_from_dit(state, 8)
    assert transformer.config.sample_size == 32
    out, _ = run(transformer, x, STEPS, labels)
    expected, _ = dit.forward(state | {"pos_embed": dit.positions().float()}, x, STEPS, labels)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
    assert transformer_from_dit(state, 8).pos_embed.pos_embed.shape == (1, 256, 32)


def test_labels_are_never_dropped() -> None:
    transformer = transformer_from_dit(TINY.random_state(), 8)
    assert not transformer.training
    x, labels = inputs(TINY)
    expected, _ = run(transformer, x, STEPS, labels)
    transformer.train()
    for _ in range(20):
        assert torch.equal(run(transformer, x, STEPS, labels)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parameters_of_any_precision(dtype: torch.dtype) -> None:
    state = {name: nn.Parameter(value.to(dtype)) for name, value in TINY.random_state().items()}
    transformer = transformer_from_dit(state, 8)
    assert {value.dtype for value in transformer.state_dict().values()} == {torch.float32}
    assert transformer.pos_embed.pos_embed.dtype == torch.float32
    assert not transformer.pos_embed.pos_embed.requires_grad
    assert "pos_embed.pos_embed" in dict(transformer.named_buffers())
    assert all(parameter.is_leaf for parameter in transformer.parameters())


def test_projectors_are_left_out() -> None:
    state = TINY.random_state()
    assert not has_projectors(state)
    assert has_projectors(state | PROJECTORS)
    plain, repa = transformer_from_dit(state, 8), transformer_from_dit(state | PROJECTORS, 8)
    expected, converted = plain.state_dict(), repa.state_dict()
    assert expected.keys() == converted.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


# Structure


@pytest.mark.parametrize(("dit", "side"), [(XL_256, 32), (XL_512, 64)], ids=["256", "512"])
def test_xl(dit: Dit, side: int) -> None:
    state = dit.meta_state()
    transformer = transformer_from_dit(state)
    config = transformer.config
    assert (config.sample_size, config.patch_size, config.num_layers) == (side, 2, 28)
    assert (config.num_attention_heads, config.attention_head_dim) == (16, 72)
    assert (config.in_channels, config.out_channels, config.num_embeds_ada_norm) == (4, 8, 1000)
    assert len(transformer.transformer_blocks) == 28
    tensors = [*transformer.parameters(), *transformer.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    numbers = sum(tensor.numel() for tensor in tensors)
    assert numbers == sum(value.numel() for value in state.values())
    assert numbers == 675_129_632 + (256 * 3 * 1152 if side == 64 else 0)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_published_sizes(width: int, heads: int, patch: int) -> None:
    state = Dit(width, depth=2, patch=patch, side=32, classes=1000, learn_sigma=False).meta_state()
    config = transformer_from_dit(state).config
    assert config.num_attention_heads == heads
    assert (config.sample_size, config.patch_size, config.out_channels) == (32, patch, 4)


def test_blocks_share_one_embedding() -> None:
    transformer = transformer_from_dit(TINY.random_state(), 8)
    assert len({id(block.norm1.emb) for block in transformer.transformer_blocks}) == 1
    table = transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    assert table.num_embeddings == TINY.classes + 1
    assert sum(value.numel() for value in transformer.parameters()) == sum(
        value.numel() for name, value in TINY.meta_state().items() if name != "pos_embed"
    )


# State dicts


def test_is_dit() -> None:
    state = TINY.meta_state()
    assert is_dit(state)
    assert is_dit(state | PROJECTORS)
    assert is_dit({name: value for name, value in state.items() if name != "pos_embed"})
    assert not is_dit({})
    assert not is_dit(Adm().meta_state())
    assert not is_dit(transformer_from_dit(state, 8).state_dict())
    vit = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "head.weight")
    assert not is_dit(dict.fromkeys(vit, torch.zeros(1)))


def test_every_key_is_needed() -> None:
    state = TINY.meta_state()
    for key in state.keys() - {"pos_embed"}:
        with pytest.raises(DiffLensError, match=f"^dit.pt is not a DiT, .*missing: {re.escape(key)}"):
            transformer_from_dit({name: value for name, value in state.items() if name != key}, 8, "dit.pt")


def test_every_shape_is_checked() -> None:
    state = TINY.meta_state()
    for key, value in state.items():
        for wrong in (value[:-1], value[..., :-1], value.sum(), value[None]):
            if key == "y_embedder.embedding_table.weight" and wrong.shape == (TINY.classes, TINY.width):
                continue  # one class fewer
            with pytest.raises(DiffLensError, match=r"wrong shape: |does not divide"):
                transformer_from_dit(state | {key: wrong}, 8)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("pos_embed", (1, 15, 32)),
        ("pos_embed", (1, 16, 64)),
        ("pos_embed", (2, 16, 32)),
        ("final_layer.linear.weight", (48, 32)),
        ("x_embedder.proj.weight", (32, 4, 2, 3)),
        ("blocks.1.mlp.fc1.weight", (96, 32)),
        ("blocks.2.attn.qkv.weight", (95, 32)),
        ("t_embedder.mlp.0.weight", (32, 128)),
    ],
)
def test_wrong_shape_is_named(key: str, shape: tuple[int, ...]) -> None:
    state = TINY.meta_state() | {key: torch.empty(shape, device="meta")}
    with pytest.raises(DiffLensError, match=re.escape(f"of the wrong shape: {key} {shape}")):
        transformer_from_dit(state, 8)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["blocks.0.attn.q_norm.weight", "blocks.0.attn.k_norm.weight"], r"unexpected: .*k_norm.*q_norm"),
        (["blocks.0.norm1.weight"], r"unexpected: blocks\.0\.norm1\.weight$"),
        (["bn.running_mean"], r"^tiny\.pt is not a DiT, SiT or REPA network: unexpected: bn\.running_mean$"),
        (["blocks.3.attn.qkv.weight"], r"missing: blocks\.3\.adaLN_modulation"),
        (["blocks.7.mlp.fc1.bias"], r"missing: blocks\.3\..*unexpected: blocks\.7\.mlp\.fc1\.bias"),
        (["mask_token"], "unexpected: mask_token$"),
    ],
)
def test_extra_keys(extra: list[str], message: str) -> None:
    state = TINY.meta_state() | {name: torch.empty(32, device="meta") for name in extra}
    assert is_dit(state)
    with pytest.raises(DiffLensError, match=message):
        transformer_from_dit(state, 8, source="tiny.pt")


def test_other_networks() -> None:
    for state in ({}, nn.Linear(2, 2).state_dict(), Adm().meta_state()):
        with pytest.raises(
            DiffLensError, match=r"^a\.pt is not a DiT, SiT or REPA network: missing: x_embed"
        ):
            transformer_from_dit(state, source="a.pt")


def test_without_blocks() -> None:
    state = {name: value for name, value in TINY.meta_state().items() if not name.startswith("blocks.")}
    assert not is_dit(state)
    with pytest.raises(DiffLensError, match=r"missing: blocks\.0\."):
        transformer_from_dit(state, 8)


def test_width_without_positions() -> None:
    with pytest.raises(DiffLensError, match="is not a DiT, SiT or REPA network: embed_dim must be divisible"):
        transformer_from_dit(Dit(width=6).meta_state(), 2)


@pytest.mark.parametrize("num_head_channels", [None, 0, -8, 12, 64])
def test_wrong_num_head_channels(num_head_channels: int | None) -> None:
    named = 64 if num_head_channels is None else num_head_channels
    with pytest.raises(DiffLensError, match=f"num_head_channels {named} does not divide the width 32 of"):
        transformer_from_dit(TINY.meta_state(), num_head_channels)
