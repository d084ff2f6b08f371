"""Extractors: independence of the batch, gradients only for trained parameters, DifFeed's parameters."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from difflens import (
    FeedbackExtractor,
    FineTunedExtractor,
    FrozenExtractor,
    HeadConfig,
    Probe,
    load_backbone,
    make_head,
)
from difflens.backbones.adm import unet_from_adm
from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.extractors.config import ExtractorConfig
from difflens.processes.schedulers import process_of
from tests.helpers import every
from tests.helpers.adm import Adm


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    return load_backbone("fashion")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_do_not_depend_on_the_batch(backbone: UNetBackbone, batch_size: int) -> None:
    extractor = FrozenExtractor(backbone, (8, 18), (5, 200), seed=3)
    images, index = torch.rand(64, 1, 32, 32) * 2 - 1, torch.randperm(1000)[:64]
    together = extractor(images, index)
    for start in range(0, 64 if batch_size > 1 else 8, batch_size):
        part = slice(start, start + batch_size)
        for place, feature in extractor(images[part], index[part]).items():
            torch.testing.assert_close(feature, together[place][part], atol=2e-4, rtol=1e-4)


def test_maps_have_the_shapes_that_are_announced(backbone: UNetBackbone) -> None:
    extractor = FrozenExtractor(backbone, (18, 1, 13), (20, 5))
    maps = extractor(torch.zeros(2, 1, 32, 32), torch.arange(2))
    assert {place: tuple(feature.shape[1:]) for place, feature in maps.items()} == extractor.shapes()
    assert extractor.places == [(1, 5), (13, 5), (18, 5), (1, 20), (13, 20), (18, 20)]


def test_draws_differ_and_repeat(backbone: UNetBackbone) -> None:
    extractor = FrozenExtractor(backbone, (13,), (50,))
    images, index = torch.zeros(2, 1, 32, 32), torch.arange(2)
    first = extractor(images, index, draw=1)[13, 50]
    assert torch.equal(first, extractor(images, index, draw=1)[13, 50])
    assert not torch.allclose(first, extractor(images, index, draw=2)[13, 50], atol=1e-2)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def gradients(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def run_backward(extractor: nn.Module, side: int = 32) -> Probe:
    probe = Probe(extractor, make_head(HeadConfig("attention", width=16), extractor.shapes(), 3))
    probe.train()
    probe(torch.rand(4, 1, side, side), torch.arange(4), 1).logsumexp(1).sum().backward()
    return probe


def test_diffeed_trains_feedback_and_head_only(backbone: UNetBackbone) -> None:
    probe = run_backward(FeedbackExtractor(backbone, (18,), (20,)))
    expected = {name for name, _ in probe.named_parameters() if not name.startswith("extractor.backbone.")}
    assert {name for name, parameter in probe.named_parameters() if parameter.requires_grad} == expected
    assert gradients(probe) == expected
    assert any(name.startswith("extractor.feedback.15") for name in expected)


def test_no_gradient_is_computed_for_frozen_weights(backbone: UNetBackbone) -> None:
    """In a DifFeed step, the leaves of autograd's graph are the parameters of feedback layers and head."""
    extractor = FeedbackExtractor(backbone, (18,), (20,))
    probe = Probe(extractor, make_head(HeadConfig("linear"), extractor.shapes(), 3)).train()
    output = probe(torch.rand(2, 1, 32, 32), torch.arange(2), 1)
    leaves, stack, seen = set(), [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack += [parent for parent, _ in node.next_functions]
    trained = {id(parameter) for parameter in probe.parameters() if parameter.requires_grad}
    assert leaves == trained


def test_frozen_features_carry_no_graph(backbone: UNetBackbone) -> None:
    maps = FrozenExtractor(backbone, (13,), (20,)).train()(torch.rand(1, 1, 32, 32), torch.arange(1))
    assert not maps[13, 20].requires_grad


def test_fine_tuning_trains_from_the_block_asked_for_to_the_last_read() -> None:
    backbone = load_backbone("fashion")
    probe = run_backward(FineTunedExtractor(backbone, (15,), (20,), from_block=14))
    inside = {id(p) for block in (14, 15) for m in backbone.modules_of(block) for p in m.parameters()}
    trained = {id(p) for p in backbone.parameters() if p.grad is not None}
    assert trained == inside
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == inside
    assert len(probe.own_state()) > len(inside)


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_walk_costs_the_sum_of_its_blocks(backbone: UNetBackbone) -> None:
    """Counted operations: no block runs after the last one, and all blocks run once."""
    x = torch.rand(1, 1, 32, 32)
    count = len(backbone.blocks)
    state = backbone._start(*backbone.fed(x, 20))
    embedding = operations(lambda: backbone._start(*backbone.fed(x, 20)))
    alone = [
        operations(lambda block=block: backbone._walk(state, range(block, block + 1), (), {}))
        for block in range(1, count + 1)
    ]
    for last in (1, 8, 13, 18, count):
        walk = operations(lambda last=last: FrozenExtractor(backbone, (last,), (20,))(x, torch.arange(1)))
        assert walk == embedding + sum(alone[:last])
    assert operations(lambda: backbone.denoise(x, 20)) > 2.4 * (embedding + sum(alone[:18]))
    # feedback from blocks 15 and 18 first enters block 8: the second pass begins there
    feedback = FeedbackExtractor(backbone, (18,), (20,), feedback_blocks=(15, 18)).eval()
    layers = operations(lambda: feedback._respond(backbone.features(x, 20, (15, 18)), x))
    layers -= operations(lambda: backbone.features(x, 20, (15, 18)))
    with torch.no_grad():
        both = operations(lambda: feedback(x, torch.arange(1)))
    assert both == embedding + sum(alone[:18]) + layers + sum(alone[7:18])


def test_training_a_head_on_frozen_features_leaves_no_gradient_buffers(backbone: UNetBackbone) -> None:
    for extractor in (FrozenExtractor(backbone, (18,), (20,)), FeedbackExtractor(backbone, (18,), (20,))):
        run_backward(extractor)
        assert gradients(extractor.backbone) == set()


@pytest.mark.parametrize("draws", [1, 2])
def test_several_noise_steps_in_one_batch_equal_separate_passes(backbone: UNetBackbone, draws: int) -> None:
    extractor = FrozenExtractor(backbone, (8, 18), (200, 5), seed=3, draws=draws).train()
    images, index = torch.rand(3, 1, 32, 32) * 2 - 1, torch.tensor([4, 90, 2])
    extractor.joint = False
    apart = extractor(images, index, 1)
    batches: list[int] = []
    hook = backbone.modules_of(1)[0].register_forward_hook(
        lambda _, inputs, output: batches.append(len(output))
    )
    extractor.joint = True
    together = extractor(images, index, 1)
    assert batches == [6] * draws
    assert list(together) == extractor.places == list(apart)
    for place in apart:
        torch.testing.assert_close(together[place], apart[place], atol=2e-4, rtol=1e-4)
    # in evaluation a map must not depend on the other maps that are read
    extractor.eval()
    alone = FrozenExtractor(backbone, (8, 18), (5,), seed=3, draws=draws).eval()(images, index)
    del batches[:]
    actual = extractor(images, index)
    hook.remove()
    assert batches == [3] * (2 * draws)
    assert all(torch.equal(actual[place], alone[place]) for place in alone)


def test_noise_steps_share_no_batch_normalisation(backbone: UNetBackbone) -> None:
    extractor = FeedbackExtractor(backbone, (18,), (5, 200)).train()
    images, index = torch.rand(3, 1, 32, 32) * 2 - 1, torch.arange(3)
    apart = extractor(images, index)
    extractor.joint = True
    together = extractor(images, index)
    assert all(torch.equal(together[place], apart[place]) for place in apart)


def test_without_memory_for_all_noise_steps_they_are_read_one_by_one(
    backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    walk = backbone.features

    def small(x_t: Tensor, *arguments: object, **options: object) -> dict[int, Tensor]:
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("full")
        return walk(x_t, *arguments, **options)

    monkeypatch.setattr(backbone, "features", small)
    extractor = FrozenExtractor(backbone, (8,), (5, 20)).train()
    extractor.joint = True
    images, index = torch.rand(2, 1, 32, 32), torch.arange(2)
    assert list(extractor(images, index)) == [(8, 5), (8, 20)]
    assert list(extractor(images, index)) == [(8, 5), (8, 20)]
    assert capfd.readouterr().err.count("too little memory for 2 noise steps in one batch") == 1


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest number of bytes that `run` holds at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events, sizes = list(record.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate(size for _, size in sorted(sizes)))


def test_checkpointing_takes_less_memory_for_the_same_gradients(backbone: UNetBackbone) -> None:
    extractor = FeedbackExtractor(backbone, (18,), (20,)).train()
    images, index = torch.rand(4, 1, 32, 32) * 2 - 1, torch.arange(4)

    def step() -> list[Tensor]:
        extractor.zero_grad()
        extractor(images, index)[18, 20].square().mean().backward()
        return [parameter.grad.clone() for parameter in extractor.feedback.parameters()]

    plain, plain_bytes = step(), peak_bytes(step)
    assert ExtractorConfig("feedback", (18,), (20,), checkpoint=True).build(backbone).checkpoint
    with pytest.raises(DiffLensError, match="for extractors that are trained, not for frozen"):
        ExtractorConfig("frozen", (18,), (20,), checkpoint=True).build(backbone)
    extractor.checkpoint = True
    again, again_bytes = step(), peak_bytes(step)
    assert again_bytes < 0.7 * plain_bytes
    for actual, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("family", ["U-Net", "DiT", "SD"])
def test_checkpointing_a_fine_tuned_backbone(family: str, tmp_path: Path) -> None:
    """The same gradients of all trained blocks, with less memory where the blocks are more than a few."""
    backbone = load_backbone("random:fashion") if family == "U-Net" else every.write(family, tmp_path).load()
    places: dict[str, Any] = {"blocks": (len(backbone.blocks),), "noise_steps": (20,)}
    extractor = ExtractorConfig("finetuned", **places, from_block=2, checkpoint=True).build(backbone).train()
    assert isinstance(extractor, FineTunedExtractor)
    count = 16 if family == "U-Net" else 2
    images = torch.rand(count, backbone.in_channels, backbone.image_size, backbone.image_size) * 2 - 1

    def step() -> list[Tensor]:
        extractor.zero_grad()
        sum(each.square().mean() for each in extractor(images, torch.arange(count)).values()).backward()
        trained = [each for parameters in extractor.trained_blocks.values() for each in parameters]
        return [torch.zeros(1) if each.grad is None else each.grad.clone() for each in trained]

    again, again_bytes = step(), peak_bytes(step)
    extractor.checkpoint = False
    plain, plain_bytes = step(), peak_bytes(step)
    assert any(gradient.abs().max() > 0 for gradient in plain)
    for actual, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    if family == "U-Net":
        assert again_bytes < 0.7 * plain_bytes
    assert "forward" not in vars(backbone.modules_of(2)[0])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_timm_model_is_fine_tuned_in_one_pass(name: str) -> None:
    """Its blocks' modules are not known, so their activations cannot be computed again."""
    backbone = load_backbone(f"random:timm:{name}")
    config = ExtractorConfig("finetuned", (len(backbone.blocks),), (0,), from_block=2)
    extractor = config.build(backbone).train()
    passes, original = [], backbone._maps
    backbone._maps = lambda *arguments: (passes.append(1), original(*arguments))[1]  # type: ignore[assignment]
    (maps,) = extractor(torch.rand(2, 3, 160, 160) * 2 - 1, torch.arange(2)).values()
    maps.square().mean().backward()
    assert passes == [1]
    assert all(each.grad is not None for each in extractor.trained_blocks[2])
    with pytest.raises(DiffLensError, match="leave out --checkpoint-activations"):
        replace(config, checkpoint=True).build(backbone)


def test_evaluation_restores_the_training_mode(backbone: UNetBackbone) -> None:
    extractor = FeedbackExtractor(backbone, (18,), (20,))
    head = make_head(HeadConfig("linear"), extractor.shapes(), 3)
    probe = Probe(extractor, head).train()
    head.eval()
    before = {name: module.training for name, module in probe.named_modules()}
    statistics = [b.clone() for b in extractor.feedback.buffers()]
    with evaluating(probe):
        assert not any(module.training for module in probe.modules())
        probe(torch.rand(2, 1, 32, 32), torch.arange(2))
    assert {name: module.training for name, module in probe.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(statistics, extractor.feedback.buffers(), strict=True))


def test_diffeed_parameters_of_the_paper() -> None:
    adm = Adm(256, (1, 1, 2, 2, 4, 4), layers=2, attention_rates=(8, 16, 32), head_channels=64)
    backbone = UNetBackbone(unet_from_adm(adm.meta_state(), 64), process_of())
    with torch.device("meta"):
        extractor = FeedbackExtractor(backbone, (24,), (150,))
        head = make_head(HeadConfig("attention"), extractor.shapes(), 1000)
    assert extractor.feedback_blocks == (21, 24, 27, 30, 33, 36)
    assert sum(p.numel() for p in extractor.feedback.parameters()) == 2_759_680
    assert Probe(extractor, head).trainable_parameters == 30_545_896


def test_feedback_changes_what_is_read_by_what_it_sends(backbone: UNetBackbone) -> None:
    extractor = FeedbackExtractor(backbone, (18,), (20,)).eval()
    images, index = torch.rand(2, 1, 32, 32), torch.arange(2)
    frozen: Tensor = FrozenExtractor(backbone, (18,), (20,))(images, index)[18, 20]
    assert not torch.allclose(extractor(images, index)[18, 20], frozen, atol=1e-2)
    for layer in extractor.feedback.values():
        nn.init.constant_(layer[1].bias, -1e3)  # behind the ReLU nothing is left to send
    torch.testing.assert_close(extractor(images, index)[18, 20], frozen)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda b: FrozenExtractor(b, (99,), (0,)),
            "no block 99: the backbone has 25 blocks: encoder 1-12, middle 13",
        ),
        (lambda b: FrozenExtractor(b, (1,), (1000,)), "noise step 1000 is outside the schedule"),
        (
            lambda b: FeedbackExtractor(b, (18,), (20,), feedback_blocks=(3,)),
            "only decoder blocks .* not block 3",
        ),
        (lambda b: FeedbackExtractor(load_backbone("pixels"), (1,), (0,)), "feedback needs a decoder"),
        (lambda b: FrozenExtractor(b, (1,), (0,)).shapes(36), "not a multiple of 8"),
    ],
)
def test_places_that_do_not_exist(backbone: UNetBackbone, build: object, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        build(backbone)


def test_draws_of_a_network_without_noise_are_refused() -> None:
    with pytest.raises(DiffLensError, match="pixels:1x16 reads images without noise: leave out --draws"):
        FrozenExtractor(load_backbone("pixels:1x16"), (1,), (0,), draws=2)
