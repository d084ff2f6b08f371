"""The compiled walk: it equals the plain one, compiles once, and gives way where compilation fails."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from difflens import DiffusionBackbone, FeedbackExtractor, FrozenExtractor, load_backbone
from difflens.backbones import compiled
from difflens.backbones.compiled import CompiledGraphs
from difflens.backbones.unet import UNetBackbone
from tests.helpers import every, families, pipelines
from tests.helpers.every import FAMILIES
from tests.helpers.networks import make_backbone

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"),
    reason="torch.compile on the CPU needs a C++ compiler",
)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@needs_compiler
def test_the_compiled_walk_equals_the_plain_one_and_serves_smaller_batches(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIFFLENS_QUIET")
    backbone = make_backbone()
    x = torch.randn(5, 1, 16, 16)
    plain = backbone.features(x, 50, [1, 2])
    assert backbone._graphs is None
    through = backbone.features(x, 50, [1, 2], compiled=True)
    assert sorted(through) == [1, 2]
    assert "compiled the walk to block 2, (5, 1, 16, 16), in" in capfd.readouterr().err
    for block in plain:
        torch.testing.assert_close(through[block], plain[block], atol=1e-4, rtol=1e-4)
    # another noise step, another layout and a smaller batch use the same graph
    graphs = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(
        backbone.features(x.to(memory_format=torch.channels_last), 50, [1, 2], compiled=True), through
    )
    for rows, t in ((5, 7), (3, 50), (3, torch.tensor([9, 9, 200]))):
        through = backbone.features(x[:rows], t, [1, 2], compiled=True)
        expected = backbone.features(x[:rows], t, [1, 2])
        for block in expected:
            torch.testing.assert_close(through[block], expected[block], atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs
    assert "compiled" not in capfd.readouterr().err


def test_batches_that_share_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: (sizes.append(len(x)), 2 * x)[1])
    graphs = CompiledGraphs()
    for rows, read in ((96, 96), (70, 96), (64, 64), (50, 64), (30, 30), (64, 64), (20, 30)):
        x = torch.randn(rows, 3)
        assert torch.equal(graphs("doubling", "key", lambda x: 2 * x, x), 2 * x)
        assert sizes[-1] == read


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_extractors_stay_within_the_tolerance(dtype: torch.dtype) -> None:
    backbone = make_backbone()
    images, index = torch.rand(4, 1, 16, 16) * 2 - 1, torch.arange(4)
    expected = FrozenExtractor(backbone, (2, 7), (5, 500)).eval()(images, index)
    backbone.to(dtype)
    extractor = FrozenExtractor(backbone, (2, 7), (5, 500)).eval()
    extractor.compiled = True
    maps = extractor(images, index)
    for place in expected:
        assert relative_error(maps[place], expected[place]) <= compiled.TOLERANCE


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_compiled_feedback_gives_the_same_maps_and_gradients(checkpoint: bool) -> None:
    extractor = FeedbackExtractor(make_backbone(), (6,), (20,)).train()
    images, index = torch.rand(4, 1, 16, 16) * 2 - 1, torch.arange(4)

    def step() -> tuple[Tensor, list[Tensor]]:
        extractor.zero_grad()
        maps = extractor(images, index)[6, 20]
        maps.square().mean().backward()
        return maps.detach(), [parameter.grad.clone() for parameter in extractor.feedback.parameters()]

    maps, gradients = step()
    extractor.compiled, extractor.checkpoint = True, checkpoint
    compiled_maps, compiled_gradients = step()
    torch.testing.assert_close(compiled_maps, maps, atol=1e-4, rtol=1e-4)
    for actual, expected in zip(compiled_gradients, gradients, strict=True):
        assert relative_error(actual, expected) < 1e-4


def uncompilable(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return 2 * x


def test_where_compiling_fails_one_line_says_so_and_the_plain_function_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    graphs, x = CompiledGraphs(), torch.arange(6.0).reshape(3, 2)
    for _ in range(2):
        assert torch.equal(graphs("the function", "key", uncompilable, x), 2 * x)
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: the function runs uncompiled: ")


def test_a_graph_that_computes_something_else_is_not_used(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: function(x) * 1.03)
    x = torch.ones(3, 2)
    assert torch.equal(CompiledGraphs()("doubling", "key", lambda x: 2 * x, x), 2 * x)
    assert "doubling runs uncompiled: compiled, its result is off by 3.0%" in capfd.readouterr().err


def test_running_out_of_memory_is_not_taken_for_a_failed_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(torch.OutOfMemoryError):
        CompiledGraphs()("filling", "key", full, torch.ones(1))


def test_nothing_is_compiled_on_the_cpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded features stay bit-equal."""
    monkeypatch.setattr(torch, "compile", None)
    backbone: UNetBackbone = make_backbone()
    images, index = torch.rand(2, 1, 16, 16), torch.arange(2)
    FrozenExtractor(backbone, (6,), (5, 20)).train()(images, index)
    FeedbackExtractor(backbone, (6,), (5,)).train()(images, index)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_walk_of_every_family_is_one_graph(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Traced as for a compiler, and run without one."""
    torch._dynamo.reset()  # families of one architecture would share a graph
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_(function, **{**options, "backend": "eager"})
    )
    backbone = every.write(name, tmp_path).load()
    assert isinstance(backbone, DiffusionBackbone)
    x, level = torch.randn(2, *backbone.input_shape), backbone.defaults.noise_step
    last, graphs = backbone.defaults.block, counters["stats"]["unique_graphs"]
    through = backbone.features(x, level, [last], compiled=True)[last]
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert "runs uncompiled" not in capfd.readouterr().err
    torch.testing.assert_close(through, backbone.features(x, level, [last])[last], atol=1e-4, rtol=1e-4)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("write", [families.write_dit, families.write_edm, pipelines.write_stable_diffusion])
def test_the_compiled_walk_of_other_families(write: Callable[[Path], Path], tmp_path: Path) -> None:
    backbone = load_backbone(str(write(tmp_path / "x")))
    assert isinstance(backbone, DiffusionBackbone)
    x, level = torch.randn(2, *backbone.input_shape), backbone.defaults.noise_step
    graphs = counters["stats"]["unique_graphs"]
    for last in (3, 2):  # a shorter cut of the same network has a graph of its own
        through = backbone.features(x, level, [last], compiled=True)[last]
        torch.testing.assert_close(through, backbone.features(x, level, [last])[last], atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs + 2
    backbone.features(x, backbone.process.at(0.3), [3], compiled=True)
    assert counters["stats"]["unique_graphs"] == graphs + 2
