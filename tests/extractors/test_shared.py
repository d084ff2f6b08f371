"""Features that runs share: the same bits as a reading alone, and each image is read once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from difflens import FrozenExtractor, load_backbone, load_data
from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place
from difflens.data.split import ImageSplit
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.shared import SharedFeatures
from tests.helpers.images import make_image_tree


@pytest.fixture
def backbone(backbone_folder: Path) -> Backbone:
    return load_backbone(str(backbone_folder))


@pytest.fixture
def split(tmp_path: Path) -> ImageSplit:
    """90 images, two batches; two of them cannot be read, and the second has a colon in its name."""
    tree = make_image_tree(tmp_path / "images", per_class=30)
    first = next(iter(sorted((tree / "train").iterdir())))
    (first / "0: 0.png").write_bytes(b"not an image")
    split = load_data(str(tree)).train
    (tree / split.ids[40]).write_bytes(b"not an image")
    return split


def extractor(backbone: Backbone, seed: int = 5) -> FrozenExtractor:
    return FrozenExtractor(backbone, (2, 6), (5,), seed=seed)


def alone(backbone: Backbone, side: int | None, split: ImageSplit) -> tuple[FeatureCache, list[str]]:
    """Return the features of a reading alone, and its lines on images that cannot be read."""
    reading = Reading(0, "skip", [])
    cache = read_features(extractor(backbone), side, split, Accelerator(cpu=True), reading)
    return cache, reading.skipped


def test_fewer_images_are_read_at_once_where_memory_is_too_small(
    backbone: Backbone, split: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = alone(backbone, 2, split)
    read, batches = FrozenExtractor.read, list[int]()

    def limited(self: FrozenExtractor, x_0: torch.Tensor, *rest: Any) -> dict[Place, torch.Tensor]:
        batches.append(len(x_0))
        if len(x_0) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, x_0, *rest)

    monkeypatch.setattr(FrozenExtractor, "read", limited)
    found, _ = alone(backbone, 2, split)
    assert batches[:3] == [64, 32, 16]
    assert {*batches[3:]} <= {16}
    assert torch.equal(found.rows, expected.rows)
    for place, maps in expected.maps.items():
        torch.testing.assert_close(found.maps[place], maps, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_a_part_at_another_side_needs_no_reading(
    backbone: Backbone, split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    colon = next(row for row, name in enumerate(split.ids) if ": " in name)
    part = split.subset(torch.tensor([77, 40, 3, 12, colon]))
    asked = [(each, side) for each in (split, part) for side in (2, None)]
    expected = [alone(backbone, side, each) for each, side in asked]
    read, original = [], FrozenExtractor.read

    def counted(self: FrozenExtractor, x_0: torch.Tensor, *others: object) -> object:
        read.append(len(x_0))
        return original(self, x_0, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenExtractor, "read", counted)
    shared = SharedFeatures((2, None, 2), tmp_path / "cache")
    for (each, side), (own, lines) in zip(asked, expected, strict=True):
        reading = Reading(0, "skip", [])
        cache = shared.read(extractor(backbone), side, each, Accelerator(cpu=True), reading, gigabytes)
        assert torch.equal(cache.rows, own.rows)
        assert torch.equal(cache.labels, own.labels)
        everything = torch.arange(len(own))
        maps = cache.batch(everything)
        assert all(torch.equal(maps[place], values) for place, values in own.batch(everything).items())
        assert sorted(reading.skipped) == sorted(lines)
    assert [len(lines) for _, lines in expected] == [2, 2, 2, 2]
    assert read == [64, 64]
    assert bool(list((tmp_path / "cache").rglob("*.bin"))) == (gigabytes == 0)
    shared.close()
    assert not (tmp_path / "cache").exists()


def test_other_noise_and_further_images_are_read(
    backbone: Backbone, split: ImageSplit, tmp_path: Path
) -> None:
    shared, process = SharedFeatures((2,), tmp_path / "cache"), Accelerator(cpu=True)
    gigabytes = 0.0  # files of earlier features are still read
    some, others = split.subset(torch.arange(0, 20)), split.subset(torch.arange(10, 30))
    reading, everything = Reading(0, "skip", []), torch.arange(10)
    first = shared.read(extractor(backbone), 2, some, process, reading, gigabytes)
    before = first.batch(everything)[2, 5].clone()
    noisier = shared.read(extractor(backbone, seed=6), 2, some, process, reading, gigabytes)
    assert not torch.equal(first.batch(everything)[2, 5], noisier.batch(everything)[2, 5])
    further = shared.read(extractor(backbone), 2, others, process, reading, gigabytes)
    own, _ = alone(backbone, 2, others)
    assert torch.equal(further.batch(everything)[2, 5], own.batch(everything)[2, 5])
    assert torch.equal(first.batch(everything)[2, 5], before)
