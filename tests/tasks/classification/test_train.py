"""The training of a probe: what it refuses, and batches of cached maps."""

import gc
import weakref
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from difflens import (
    DiffLensError,
    FrozenExtractor,
    HeadConfig,
    Probe,
    TrainConfig,
    evaluate,
    fit,
    make_head,
    read_features,
)
from difflens.data.images import to_float
from difflens.data.split import MemorySplit
from difflens.extractors.cache import FeatureCache
from difflens.tasks.classification import train as classification
from difflens.tasks.classification.train import cached_batches
from tests.helpers.networks import make_backbone


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


@pytest.fixture
def split() -> MemorySplit:
    images = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8)
    return MemorySplit("train", images, torch.arange(12) % 3)


def make_probe(classes: int = 3, **head: Any) -> Probe:
    extractor = FrozenExtractor(make_backbone(), (6,), (30,))
    torch.manual_seed(0)
    return Probe(extractor, make_head(HeadConfig(**{"name": "linear", **head}), extractor.shapes(), classes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning-rate is -1"),
        ({"optimizer": "adamx"}, r"no optimizer 'adamx'; did you mean adamw\?"),
        ({"lr_schedule": "foo"}, "no lr-schedule 'foo'"),
        ({"augment": "foo"}, "no augment 'foo'"),
        ({"mixup": -1.0}, "mixup is -1"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_a_wrong_option_is_refused(split: MemorySplit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        fit(make_probe(), split, TrainConfig(**options))


def test_what_cannot_be_trained_is_refused(split: MemorySplit) -> None:
    config = TrainConfig(epochs=1)
    for head, message in (
        ({"name": "knn"}, "nothing can be trained"),
        ({"normalise": "whiten"}, "the normalisation of the head is not measured"),
    ):
        with pytest.raises(DiffLensError, match=message):
            fit(make_probe(**head), split, config)
    with pytest.raises(DiffLensError, match="labels of 3 classes, and the head is for 2"):
        fit(make_probe(2), split, config)
    with pytest.raises(DiffLensError, match="train has no images"):
        fit(make_probe(), split.subset([]), config)
    with pytest.raises(DiffLensError, match="train has no labels"):
        fit(make_probe(), MemorySplit("train", split.pixels), config)
    with pytest.raises(DiffLensError, match="the head is for 3 classes, and 2 are named"):
        evaluate(make_probe(), split, ("a", "b"), config)


def test_random_numbers_of_the_caller_go_on(split: MemorySplit) -> None:
    probe = make_probe()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(probe, split, TrainConfig(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_features_of_a_frozen_backbone_are_read_once(
    split: MemorySplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, classes = make_probe(), ("a", "b", "c")
    features = read_features(probe.extractor, None, split)
    (whole,) = probe.extractor.read(to_float(split.pixels), split.noise_index).values()
    torch.testing.assert_close(features.maps[6, 30], whole.half(), atol=1e-3, rtol=1e-2)
    with monkeypatch.context() as patched:
        patched.setattr(FrozenExtractor, "read", None)
        fit(probe, split, TrainConfig(epochs=2), cache=features)
        read_once = evaluate(probe, split, classes, TrainConfig(), cache=features)
    read_again = evaluate(probe, split, classes, TrainConfig())
    torch.testing.assert_close(read_once.confidence, read_again.confidence, atol=1e-3, rtol=0)


def test_a_trained_probe_is_not_kept_in_memory(split: MemorySplit) -> None:
    process = Accelerator(cpu=True)
    probe = make_probe()
    weight = weakref.ref(probe.head.classifier.weight)
    fit(probe, split, TrainConfig(epochs=1), process)
    del probe
    gc.collect()
    assert weight() is None


def test_an_accelerator_of_the_caller_keeps_its_state(split: MemorySplit) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    probe = make_probe()
    fit(probe, split, TrainConfig(epochs=1))
    evaluate(probe, split, ("a", "b", "c"), TrainConfig())
    assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
    assert Accelerator(cpu=True).mixed_precision == "bf16"  # still the same state
    AcceleratorState._reset_state(reset_partial_state=True)
