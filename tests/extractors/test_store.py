"""The feature store: the maps that are read are those that were written, and damage is refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflens import DiffLensError, ExtractConfig, FeatureStore, extract, load_data
from difflens.extractors.manifest import Layout
from difflens.extractors.store import StoredMaps, write_shard
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> tuple[Path, Path]:
    """Return a store of a small image tree, and the tree."""
    root = tmp_path_factory.mktemp("stored")
    tree = make_image_tree(root / "images")
    config = ExtractConfig(
        out=root / "store",
        backbone=str(backbone_folder),
        data=str(tree),
        blocks=(4, 6),
        noise_steps=(3, 9),
        device="cpu",
        workers=0,
    )
    extract(config)
    return root / "store", tree


def test_reading_by_rows_slices_and_shards(stored: tuple[Path, Path]) -> None:
    store = FeatureStore(stored[0])
    assert (store.blocks, store.noise_steps, store.splits) == ((4, 6), (3, 9), ("train", "val"))
    maps = store.maps("train", 6, 9)
    whole = maps[:]
    assert whole.shape == maps.shape == (36, 16, 8, 8)
    assert torch.equal(whole, torch.cat(maps.shards))
    rows = torch.tensor([30, 2, 2, 17])
    assert torch.equal(maps[rows], whole[rows])
    assert torch.equal(maps.subset(rows)[1:3], whole[[2, 2]])
    assert torch.equal(maps[5], whole[5])
    data = load_data(str(stored[1]))
    assert store.ids("train") == data.train.ids
    assert torch.equal(store.labels("val"), data.test.labels)
    for read in (store.ids, store.labels, store.index, store.rows):
        with pytest.raises(DiffLensError, match="has no split 'test'; it has train, val"):
            read("test")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any), st.data())
@settings(deadline=None, max_examples=40)
def test_any_cut_into_shards_reads_the_same(sizes: list[int], data: st.DataObject) -> None:
    whole = torch.randn(sum(sizes), 2, 1, 1)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)), dtype=torch.long)
    maps = StoredMaps(whole.split(sizes))
    assert torch.equal(maps[:], whole)
    assert torch.equal(maps[rows], whole[rows])


def test_the_maps_are_those_of_the_extractor(stored: tuple[Path, Path], backbone_folder: Path) -> None:
    from difflens import FrozenExtractor, load_backbone
    from difflens.data.images import fit, to_float

    data = load_data(str(stored[1]))
    backbone = load_backbone(str(backbone_folder))
    image = to_float(fit(data.train.image(20), 3, 16))[None]
    expected = FrozenExtractor(backbone, (4, 6), (3, 9))(image, data.train.index[20:21])
    for (block, t), maps in expected.items():
        torch.testing.assert_close(
            FeatureStore(stored[0]).maps("train", block, t)[20].float(), maps[0], atol=2e-3, rtol=2e-3
        )


def test_a_cache_finds_images_by_name(stored: tuple[Path, Path]) -> None:
    store, data = FeatureStore(stored[0]), load_data(str(stored[1]))
    rows = torch.tensor([35, 4, 12])
    chosen = data.train.subset(rows)
    for gigabytes in (4.0, 0.0):  # in memory, on the disk
        cache = store.cache(chosen, [(6, 3)], gigabytes)
        assert torch.equal(cache.maps[6, 3][torch.arange(3)], store.maps("train", 6, 3)[rows])
        assert torch.equal(cache.labels, chosen.labels)
        assert torch.equal(cache.rows, torch.arange(3))


def test_data_of_the_same_names_and_other_labels_is_refused(stored: tuple[Path, Path]) -> None:
    store, data = FeatureStore(stored[0]), load_data(str(stored[1]))
    other = data.train.subset(torch.arange(3))
    other.labels = other.labels + 1
    with pytest.raises(DiffLensError, match="has other labels of the train images"):
        store.cache(other, [(4, 3)])


def test_what_is_not_there_is_named(stored: tuple[Path, Path], tmp_path: Path) -> None:
    store = FeatureStore(stored[0])
    with pytest.raises(
        DiffLensError, match="no block 5 at noise step 3: it holds blocks 4, 6 at noise steps 3, 9"
    ):
        store.maps("train", 5, 3)
    with pytest.raises(DiffLensError, match="no split 'test'; it has train, val"):
        store.maps("test", 4, 3)
    with pytest.raises(DiffLensError, match=r"there is no manifest\.json in it"):
        FeatureStore(tmp_path)
    other = load_data("fashion").train.subset(torch.arange(3))
    other.name = "train"
    with pytest.raises(DiffLensError, match="lacks 3 of the 3 train images, train/00000 for example"):
        store.cache(other, [(4, 3)])


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest", "version", "images"])
def test_a_damaged_store(stored: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    import shutil

    path = tmp_path / "store"
    shutil.copytree(stored[0], path)
    shard = path / "val" / "t00009-00000.safetensors"
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:500])
    elif damage == "images":
        (path / "val" / "images.csv").write_text("what,ever\n1,2\n")
    else:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest.pop("blocks") if damage == "manifest" else manifest.update(difflens_store=99)
        (path / "manifest.json").write_text(json.dumps(manifest))
    message = {
        "missing": "of 4 shards, 1 is missing, val/t00009-00000.safetensors for example",
        "truncated": r"t00009-00000\.safetensors is damaged",
        "manifest": r"manifest\.json: blocks is missing",
        "version": "difflens_store is 99, of another version of difflens",
        "images": r"do not have their checksums: val/images\.csv",
    }[damage]
    with pytest.raises(DiffLensError, match=message):
        FeatureStore(path).maps("val", 4, 9)


def test_shards_hold_whole_batches_and_the_size_is_predicted(tmp_path: Path) -> None:
    shapes = {3: (8, 16, 16), 5: (4, 8, 8)}
    layout = Layout({"train": 1000, "test": 70}, shapes, (1, 2), "float16", shard_megabytes=1)
    assert layout.shard_images % 64 == 0
    assert sum(len(shard.rows) for shard in layout.shards if shard.split == "train") == 1000
    total = 0
    for shard in layout.shards:
        for t in layout.noise_steps:
            path = tmp_path / shard.path(t)
            maps = {b: torch.zeros(len(shard.rows), *shape).half() for b, shape in layout.shapes.items()}
            write_shard(path, shard.rows, maps)
            total += path.stat().st_size
    assert total == pytest.approx(layout.bytes_in(layout.shards), rel=1e-3)
