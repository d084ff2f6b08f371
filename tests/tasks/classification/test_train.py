"""Batches of cached maps do not depend on the number of maps that are fetched at once."""

import pytest
import torch

from difflens.extractors.cache import FeatureCache
from difflens.tasks.classification import train as classification
from difflens.tasks.classification.train import cached_batches


@pytest.mark.parametrize("fetched", [0, 4 * 6 * 5, 1 << 20])
def test_batches_are_those_of_the_order(monkeypatch: pytest.MonkeyPatch, fetched: int) -> None:
    monkeypatch.setattr(classification, "_FETCHED_BYTES", fetched)
    maps = {(1, 5): torch.randn(23, 4, 1, 1).half(), (2, 5): torch.randn(23, 2, 1, 1).half()}
    cache = FeatureCache(maps, torch.arange(23), torch.arange(23))
    order = torch.randperm(23)
    batches = list(cached_batches(cache, order, 5, torch.device("cpu")))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    for chosen, (found, labels) in zip(order.split(5), batches, strict=True):
        assert torch.equal(labels, chosen)
        assert list(found) == list(maps)
        assert all(torch.equal(found[place], maps[place][chosen].float()) for place in maps)
