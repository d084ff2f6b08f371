"""The benchmark of throughput runs at a small size and says what it promises."""

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from difflens.backbones.unet import UNetBackbone


@pytest.fixture(scope="module")
def throughput() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
    spec = importlib.util.spec_from_file_location("throughput", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_table_with_the_released_way_first(
    throughput: ModuleType, backbone_folder: Path, tmp_path: Path
) -> None:
    config = throughput.Config(
        backbone=str(backbone_folder),
        json=tmp_path / "out" / "table.json",
        batch_size=4,
        repetitions=2,
        seconds=0,
        without=("compile", "channels-last"),
        groups=("extraction", "attention", "diffeed", "pretraining"),
    )
    throughput.main(config)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert rows[0]["name"] == "extraction: the released way"
    assert all(row["images_per_second"] > 0 for row in rows)
    extraction = [row["name"].removeprefix("extraction: ") for row in rows if row["group"] == "extraction"]
    assert extraction == [
        "the released way",
        "+ stop after block 7",
        "+ 3 noise steps in one batch",
        "stop, with --precision bfloat16",
    ]
    released, stopped, joint, half = rows[:4]
    assert stopped["operations_per_image"] < released["operations_per_image"]
    assert joint["operations_per_image"] == stopped["operations_per_image"]
    assert stopped["relative_error"] == 0
    assert joint["relative_error"] < 1e-4
    assert 1e-4 < half["relative_error"] < 0.1
    cached = next(row for row in rows if row["name"] == "attention: on cached features")
    assert cached["over_products"] > 0
    formats = [row["name"] for row in rows if row["group"] == "pretraining"]
    assert formats == ["pretraining: float32, eager", "pretraining: bfloat16, float32 weights"]
    feed = {row["name"]: row for row in rows if row["group"] == "diffeed"}
    *order, lower = feed.values()
    assert lower["name"] == "diffeed: shared, with --precision bfloat16"
    assert order[-1]["name"].startswith("diffeed: + checkpointing")
    for before, after in itertools.pairwise(order[:-1]):
        assert after["operations_per_image"] < before["operations_per_image"]
    assert order[-1]["operations_per_image"] > order[-2]["operations_per_image"]
    assert order[-1]["peak_bytes"] < order[-2]["peak_bytes"]


def test_the_released_way_reads_the_same_maps(throughput: ModuleType, backbone_folder: Path) -> None:
    """Whole passes with hooks, written apart from the walk, give what the extractors give."""
    config = throughput.Config(backbone=str(backbone_folder), batch_size=4)
    bench = throughput.Bench(config)
    images, index, _ = bench.images(3)
    network: UNetBackbone = bench.network(frozenset())
    places = (7,), (5, 50)
    whole = throughput.WholeNetwork(network, *places).eval()(images, index)
    walked = throughput.FrozenExtractor(network, *places).eval()(images, index)
    torch.testing.assert_close(whole, walked)
    kinds = throughput.TwoWholePasses, throughput.TwoPasses, throughput.FeedbackExtractor
    maps = []
    for kind in kinds:
        torch.manual_seed(0)
        maps.append(kind(network, *places).train()(images, index))
    torch.testing.assert_close(maps[0], maps[2])
    torch.testing.assert_close(maps[1], maps[2])
