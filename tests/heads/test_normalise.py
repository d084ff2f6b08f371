"""Normalisation: folded or stored with a head, it equals normalising the features beforehand."""

import pytest
import torch

from difflens.errors import DiffLensError
from difflens.heads.config import HeadConfig
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead
from difflens.heads.make import make_head
from difflens.heads.normalise import Normalisation

SHAPES = {(3, 10): (6, 4, 4), (3, 0.5): (6, 4, 4), (5, 10): (4, 8, 8), (5, 0.5): (4, 8, 8)}
KINDS = ["standard", "whiten"]


def maps_of(count: int, seed: int = 0) -> dict:
    """Correlated maps whose channels differ in mean and scale by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(9)
    maps = {}
    for place, (channels, *size) in SHAPES.items():
        values = torch.randn(count, channels, *size, generator=generator)
        values = torch.einsum("dc,bchw->bdhw", torch.randn(channels, channels, generator=mixing), values)
        maps[place] = (values + 3) * 10.0 ** torch.arange(-1, channels - 1)[:, None, None]
    return maps


def fitted(normalisation: Normalisation) -> Normalisation:
    maps = maps_of(40)
    halves = [{place: each[part] for place, each in maps.items()} for part in (slice(25), slice(25, None))]
    normalisation.fit(normalisation.moments(halves), 40)
    return normalisation


def normalised(kind: str, maps: dict) -> dict:
    channels = {place: shape[0] for place, shape in SHAPES.items()}
    return fitted(Normalisation(channels, kind))(maps)


@pytest.mark.parametrize("kind", KINDS)
def test_each_place_is_normalised_over_images_and_positions(kind: str) -> None:
    for place, maps in normalised(kind, maps_of(40)).items():
        vectors = maps.movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(vectors.mean(0), torch.zeros(SHAPES[place][0]), atol=1e-3, rtol=0)
        if kind == "standard":
            torch.testing.assert_close(vectors.var(0), torch.ones(SHAPES[place][0]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", [2, 0])
def test_folded_into_a_linear_head_equals_applied(kind: str, pool: int) -> None:
    head = make_head(HeadConfig("linear", pool=pool, normalise=kind), SHAPES, 5)
    plain = make_head(HeadConfig("linear", pool=pool), SHAPES, 5)
    fitted(head.normalisation)
    plain.load_state_dict(head.classifier.state_dict(prefix="classifier."))
    maps = maps_of(9, seed=1)
    applied = plain(normalised(kind, maps))
    torch.testing.assert_close(head(maps), applied, rtol=1e-4, atol=1e-4)
    assert isinstance(head, LinearHead)
    head.fold()
    assert head.state_dict().keys() == plain.state_dict().keys()  # nothing is left of it
    torch.testing.assert_close(head(maps), applied, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain(maps), applied, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mix", "knn"])
def test_stored_with_a_head_equals_applied(kind: str, name: str) -> None:
    config = HeadConfig(name, pool=4, width=16 if name == "mix" else None, bank=30)
    heads = []
    for normalise in (kind, "none"):
        torch.manual_seed(2)
        heads.append(make_head(HeadConfig(**{**vars(config), "normalise": normalise}), SHAPES, 3).eval())
    head, plain = heads
    fitted(head.normalisation)
    if name == "knn":
        bank = maps_of(30, seed=3)
        assert isinstance(head, NeighbourHead)
        head.remember(head.vectors(bank), torch.arange(30) % 3)
        plain.remember(plain.vectors(normalised(kind, bank)), torch.arange(30) % 3)
    maps = maps_of(9, seed=1)
    torch.testing.assert_close(head(maps), plain(normalised(kind, maps)), rtol=2e-3, atol=2e-3)
    # what is saved is enough to read it back
    again = make_head(HeadConfig(**{**vars(config), "normalise": kind}), SHAPES, 3).eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(maps), head(maps))


def test_whitening_needs_as_many_images_as_channels() -> None:
    normalisation = Normalisation({(3, 10): 6, (5, 10): 4}, "whiten")
    moments = normalisation.moments([maps_of(5)])
    with pytest.raises(DiffLensError, match="6 channels needs at least 6 training images, not 5"):
        normalisation.fit(moments, 5)
    normalisation.fit(moments, 6)
    Normalisation({(3, 10): 6}, "standard").check(1)
