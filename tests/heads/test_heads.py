"""Heads: parity with golden logits, the paper's parameter counts, and each head's contract."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difflens.errors import DiffLensError
from difflens.heads.config import HeadConfig
from difflens.heads.difformer import DifFormerHead, TransformerBlock
from difflens.heads.make import make_head

GOLDEN = Path(__file__).parents[1] / "fixtures" / "difformer_tiny.safetensors"

ADM_24 = {(24, 150): (1024, 16, 16)}
ADM_FUSION = {
    (block, t): shape
    for block, shape in {19: (1024, 8, 8), 24: (1024, 16, 16), 30: (512, 64, 64)}.items()
    for t in (90, 150, 300)
}


def golden_head() -> tuple[DifFormerHead, dict, torch.Tensor]:
    """Return the golden weights under this package's names, their inputs and their logits."""
    stored = load_file(GOLDEN)
    features = {}
    for name, value in stored.items():
        if match := re.fullmatch(r"features\.t(\d+)\.b(\d+)", name):
            features[int(match[2]), int(match[1])] = value
    shapes = {place: tuple(value.shape[1:]) for place, value in features.items()}
    head = DifFormerHead(shapes, num_classes=7, width=32, heads=4, depth=2, pool=8)
    rename = {
        r"pre_layer\.(\d+)\.1\.": r"entry.\1.0.",
        r"pre_layer\.(\d+)\.2\.": r"entry.\1.1.",
        r"intra_inter_block_attention\.cls_token": "cls_token",
        r"intra_inter_block_attention\.layers\.1\.": "transformer.0.",
        r"intra_inter_block_attention\.layers\.2\.": "transformer.1.",
        r"transformer\.(\d)\.attn\.qkv": r"transformer.\1.qkv",
        r"transformer\.(\d)\.attn\.proj": r"transformer.\1.projection",
        r"mlp\.fc1": "mlp.0",
        r"mlp\.fc2": "mlp.2",
        r"^head\.": "classifier.",
    }
    state = {}
    for name, value in stored.items():
        if name.startswith("weights."):
            renamed = name.removeprefix("weights.")
            for pattern, replacement in rename.items():
                renamed = re.sub(pattern, replacement, renamed)
            state[renamed] = value.float()
    head.load_state_dict(state)
    return head.eval(), features, stored["logits"]


def test_difformer_equals_golden_logits() -> None:
    head, features, logits = golden_head()
    torch.testing.assert_close(head(features), logits, atol=1e-4, rtol=0)


def test_difformer_does_not_depend_on_the_order_of_its_inputs() -> None:
    head, features, logits = golden_head()
    torch.testing.assert_close(head(dict(reversed(features.items()))), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "shapes", "count"),
    [
        ("linear", ADM_24, 4_097_000),
        ("attention", ADM_24, 27_786_216),
        ("difformer", ADM_FUSION, 31_802_344),
        ("mix", ADM_FUSION, 345_073),
    ],
)
def test_parameter_counts(name: str, shapes: dict, count: int) -> None:
    with torch.device("meta"):
        head = make_head(HeadConfig(name), shapes, num_classes=1000)
    assert sum(parameter.numel() for parameter in head.parameters()) == count


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "attention", "difformer", "mix"])
@pytest.mark.parametrize("pool", [None, 0, 1, 2, 4, 8])
def test_every_head_gives_logits_and_gradients_to_all_its_parameters(name: str, pool: int | None) -> None:
    shapes = {(3, 10): (8, 8, 8)}
    if name in ("linear", "difformer", "mix"):
        shapes |= {(3, 20): (8, 8, 8), (5, 10): (4, 16, 16), (5, 20): (4, 16, 16)}
    head = make_head(HeadConfig(name, pool=pool, width=16), shapes, num_classes=6)
    logits = head({place: torch.randn(5, *shape) for place, shape in shapes.items()})
    assert logits.shape == (5, 6)
    logits.square().sum().backward()
    without = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "attention", "mix"])
def test_maps_pooled_beforehand_give_the_same_logits(name: str) -> None:
    """A cache relies on it."""
    from difflens.backbones.maps import pool_to

    head = make_head(HeadConfig(name, pool=4, width=16), {(1, 0): (6, 16, 16)}, num_classes=3).eval()
    maps = torch.randn(4, 6, 16, 16)
    torch.testing.assert_close(head({(1, 0): maps}), head({(1, 0): pool_to(maps, head.pool)}))


def test_the_cnn_joins_maps_of_images_that_are_not_square() -> None:
    shapes = {(1, 5): (4, 16, 32), (2, 5): (6, 8, 16)}
    head = make_head(HeadConfig("cnn"), shapes, 3)
    assert head({place: torch.randn(2, *shape) for place, shape in shapes.items()}).shape == (2, 3)


def test_only_needed_outputs_equal_all_outputs() -> None:
    block = TransformerBlock(16, heads=4)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(block(x, outputs=1), block(x)[:, :1])


def test_attention_refuses_several_maps() -> None:
    with pytest.raises(DiffLensError, match="difformer reads several"):
        make_head(HeadConfig("attention"), ADM_FUSION, 10)


def test_difformer_needs_a_full_grid() -> None:
    with pytest.raises(DiffLensError, match=r"missing are \[\(5, 20\)\]"):
        make_head(HeadConfig("difformer"), {(3, 10): (8, 4, 4), (3, 20): (8, 4, 4), (5, 10): (8, 4, 4)}, 10)


@pytest.mark.parametrize("width", [1, 50, 84, 97, 100, 150])
def test_any_width_divides_into_heads(width: int) -> None:
    """As half of 168 channels, for example, which networks of timm have."""
    head = make_head(HeadConfig("attention", width=width), {(1, 0): (8, 4, 4)}, 10)
    assert head({(1, 0): torch.rand(2, 8, 4, 4)}).shape == (2, 10)


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(DiffLensError, match="not a multiple of its 3 attention heads"):
        DifFormerHead({(1, 0): (8, 4, 4)}, 10, 50, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "atention"}, r"no name 'atention'; did you mean attention\?"),
        ({"name": "linear", "mix": "foo"}, "no mix 'foo'"),
        ({"name": "linear", "normalise": "foo"}, "no normalise 'foo'"),
        ({"name": "attention", "width": 0}, "width is 0"),
        ({"name": "attention", "depth": "2"}, "depth is '2'; it must be a whole number"),
        ({"name": "attention", "normalise": "whiten"}, "the attention head does not normalise"),
    ],
)
def test_a_wrong_configuration_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        make_head(HeadConfig(**options), {(1, 0): (8, 4, 4)}, 10)


def test_a_head_needs_maps_and_classes() -> None:
    with pytest.raises(DiffLensError, match="reads at least one map"):
        make_head(HeadConfig("linear"), {}, 10)
    with pytest.raises(DiffLensError, match="num-classes is 0"):
        make_head(HeadConfig("linear"), {(1, 0): (8, 4, 4)}, 0)


def test_where_cls_looks() -> None:
    """Compare the weights of the last block with attention computed in full."""
    head, features, _ = golden_head()
    own, maps = head.attention(features)
    assert set(maps) == set(features)
    for number, t in enumerate(head.noise_steps):
        on_maps = torch.cat([maps[block, t].flatten(1) for block in head.blocks], dim=1)
        torch.testing.assert_close(own[:, number] + on_maps.sum(1), torch.ones(len(on_maps)))
        last = head.transformer[-1]
        queries, keys, _ = last.qkv(last.norm1(head._before_last(features, t))).chunk(3, dim=-1)
        by_head = [
            (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)[:, 0]
            for q, k in zip(queries.chunk(4, dim=-1), keys.chunk(4, dim=-1), strict=True)
        ]
        torch.testing.assert_close(torch.stack(by_head).mean(0)[:, 1:], on_maps)


def test_logits_are_the_sum_of_what_their_parts_add() -> None:
    head, features, logits = golden_head()
    parts = head.logits_by_noise_step(features)
    assert len(parts) == len(head.noise_steps)
    torch.testing.assert_close(parts.sum(0) + head.classifier.bias, logits, atol=1e-4, rtol=0)
    shapes = {(1, 5): (4, 8, 8), (2, 5): (6, 1, 1), (1, 9): (4, 8, 8)}
    linear = make_head(HeadConfig("linear"), shapes, 3)
    maps = {place: torch.randn(2, *shape) for place, shape in shapes.items()}
    by_place = linear.logits_by_place(maps)
    torch.testing.assert_close(by_place.sum(0) + linear.classifier.bias, linear(maps))
    alone = {
        place: value if place == linear.places[1] else torch.zeros_like(value)
        for place, value in maps.items()
    }
    torch.testing.assert_close(by_place[1], linear(alone) - linear.classifier.bias)
