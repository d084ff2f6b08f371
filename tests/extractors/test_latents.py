"""Latents in a cache: the features that they give are those of the images, to the last bit."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from difflens import DiffLensError, FrozenExtractor, load_backbone, load_data
from difflens.backbones.base import Backbone
from difflens.data.split import ImageSplit
from difflens.extractors import latents as cached
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.latents import Latents
from tests.helpers.encoded import count_encoded
from tests.helpers.families import write_ldm
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def ldm(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_ldm(tmp_path_factory.mktemp("ldm"))))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ImageSplit:
    """90 images, two batches; two images of the first batch cannot be read."""
    tree = make_image_tree(tmp_path_factory.mktemp("tree") / "images", per_class=30)
    split = load_data(str(tree)).train
    for row in (3, 40):
        (tree / split.ids[row]).write_bytes(b"not an image")
    return split


def read(backbone: Backbone, split: ImageSplit, t: int, latents: Latents | None = None) -> FeatureCache:
    extractor = FrozenExtractor(backbone, (2, 6), (t,), seed=5)
    return read_features(
        extractor, None, split, Accelerator(cpu=True), Reading(0, "skip", []), latents=latents
    )


@pytest.mark.parametrize("gigabytes", [1.0, 0.0])
def test_features_are_those_of_the_images(
    ldm: Backbone, split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    plain = {t: read(ldm, split, t) for t in (5, 300)}
    encoded = count_encoded(monkeypatch)
    latents = Latents.of(ldm, split, gigabytes, tmp_path / "cache")
    assert latents is not None
    assert (tmp_path / "cache" / "train.latents").is_file() == (gigabytes == 0)
    for t in (300, 5, 300):
        cache = read(ldm, split, t, latents)
        assert torch.equal(cache.rows, plain[t].rows)
        assert torch.equal(cache.labels, plain[t].labels)
        assert all(torch.equal(maps, plain[t].maps[place]) for place, maps in cache.maps.items())
    assert encoded == [64, 64]
    assert latents.values.shape == (90, 3, 16, 16)
    assert (~latents.readable).nonzero()[:, 0].tolist() == [3, 40]


def test_a_reading_that_stops_leaves_latents_incomplete(ldm: Backbone, split: ImageSplit) -> None:
    latents = Latents.of(ldm, split, 1.0, Path())
    extractor = FrozenExtractor(ldm, (2,), (5,))
    assert latents is not None
    reading = Reading(0, "skip", [])
    next(reading.features(extractor, split, torch.arange(90), None, torch.float32, latents))
    assert not latents.complete
    again = read(ldm, split, 5, latents)
    assert latents.complete
    assert torch.equal(again.maps[2, 5], read(ldm, split, 5).maps[2, 5])


def test_pixel_networks_have_no_latents(split: ImageSplit, tmp_path: Path) -> None:
    assert Latents.of(load_backbone("fashion"), split, 0.0, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(
    ldm: Backbone, split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cached.os, "posix_fallocate", full)
    with pytest.raises(DiffLensError, match=r"no room for 0\.0 GB in .*: No space left on device"):
        Latents.of(ldm, split, 0.0, tmp_path)


def test_an_extractor_reads_latents(ldm: Backbone) -> None:
    extractor = FrozenExtractor(ldm, (2, 6), (5, 300), draws=2)
    images, index = torch.rand(3, 3, 32, 32) * 2 - 1, torch.arange(3)
    x_0 = ldm.encode(images)
    expected = extractor(images, index)
    assert all(torch.equal(maps, expected[place]) for place, maps in extractor.read(x_0, index).items())
