"""The head mix: equal to the attention head with one place, and equal to its definition with several."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from difflens.heads.config import HeadConfig
from difflens.heads.difformer import DifFormerHead
from difflens.heads.make import make_head
from difflens.heads.mix import MixHead, Mixture

ONE = {(3, 10): (24, 8, 8)}
SEVERAL = {(3, 10): (24, 8, 8), (3, 20): (24, 8, 8), (5, 10): (12, 4, 4), (5, 20): (12, 4, 4)}


def maps_of(shapes: dict) -> dict:
    return {place: torch.randn(5, *shape) for place, shape in shapes.items()}


def heads(seed: int = 0) -> tuple[MixHead, DifFormerHead]:
    made = []
    for name in ("mix", "attention"):
        torch.manual_seed(seed)
        made.append(make_head(HeadConfig(name, pool=8, width=16), ONE, 7).eval())
    return tuple(made)


@pytest.mark.parametrize("mix", ["image", "spatial"])
def test_with_one_place_and_the_same_seed_mix_is_the_attention_head(mix: str) -> None:
    _, attention = heads(3)
    torch.manual_seed(3)
    head = make_head(HeadConfig("mix", pool=8, width=16, mix=mix), ONE, 7).eval()
    maps = maps_of(ONE)
    torch.testing.assert_close(head(maps), attention(maps))


def test_with_one_place_and_any_weights_mix_is_an_attention_head() -> None:
    """The embedding of a position is what the projection makes of the LayerNorm's shift there."""
    mix, attention = heads()
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.normal_(std=0.3)
        projection = mix.mixture.project["3"]
        norm, convolution = attention.entry["3"]
        shift = torch.linalg.pinv(projection.weight.flatten(1)) @ mix.position[0].flatten(1)
        norm.bias.copy_(shift.view_as(norm.bias))
    convolution.load_state_dict(projection.state_dict())
    shared = {name: value for name, value in mix.state_dict().items() if not name.startswith("mixture")}
    del shared["position"]
    left = attention.load_state_dict(shared, strict=False)
    assert left.unexpected_keys == []
    assert {name.split(".")[0] for name in left.missing_keys} == {"entry"}
    maps = maps_of(ONE)
    torch.testing.assert_close(mix(maps), attention(maps), rtol=1e-4, atol=1e-5)
    own, where = mix.attention(maps)
    on_itself, by_place = attention.attention(maps)
    torch.testing.assert_close(where, by_place[3, 10], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own, on_itself[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [None, (8, 8)])
def test_a_mixture_is_the_weighted_sum_of_projected_maps(size: tuple[int, int] | None) -> None:
    mixture = Mixture({place: shape[0] for place, shape in SEVERAL.items()}, 6, size)
    torch.nn.init.normal_(mixture.logits)
    maps = maps_of(SEVERAL)
    expected = torch.zeros(5, 6, 8, 8)
    for number, (block, t) in enumerate(sorted(SEVERAL)):
        weight = mixture.project[str(block)].weight.flatten(1)
        projected = torch.einsum("oc,bchw->bohw", weight, maps[block, t])
        projected = projected + mixture.project[str(block)].bias[:, None, None]
        if block == 5:
            projected = F.interpolate(projected, scale_factor=2, mode="bilinear")
        share = mixture.logits.exp()[number] / mixture.logits.exp().sum(0)
        expected = expected + share * projected
    torch.testing.assert_close(mixture(maps), expected)
    torch.testing.assert_close(mixture.weights.sum(0), torch.ones(size or (1, 1)))


def test_weights_are_learned_for_the_place_that_tells_classes_apart() -> None:
    """Only the maps of (3, 20) know the label."""
    torch.manual_seed(0)
    head = make_head(HeadConfig("mix", pool=4, width=16, depth=1), SEVERAL, 2)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)

    def batch() -> tuple[dict, Tensor]:
        labels, maps = torch.arange(32) % 2, {p: torch.randn(32, *shape) for p, shape in SEVERAL.items()}
        maps[3, 20][:, 0] += 4 * labels[:, None, None]
        return maps, labels

    for _ in range(60):
        maps, labels = batch()
        loss = F.cross_entropy(head(maps), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = dict(zip(head.mixture.places, head.mixture.weights.flatten().tolist(), strict=True))
    assert max(weights, key=weights.__getitem__) == (3, 20)
