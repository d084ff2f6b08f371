"""`extract` end to end: any interruption and any number of processes give the same bytes."""

import json
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflens import DiffLensError, ExtractConfig, FeatureStore, ProbeConfig, extract, probe
from difflens.data import split
from difflens.data.images import read_image, to_float
from difflens.data.labels import limited
from difflens.data.load import load_data
from difflens.studies import extract as extraction
from tests.helpers.files import contents
from tests.helpers.processes import run_several


def config(out: Path, backbone: Path, images: Path, /, **changes: object) -> ExtractConfig:
    base = ExtractConfig(
        out=out,
        backbone=str(backbone),
        data=str(images),
        blocks=(4, 6),
        noise_steps=(3, 9),
        device="cpu",
        workers=0,
    )
    return replace(base, **changes)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use shards of 12 images, so that a few images make many shards."""
    monkeypatch.setattr(extraction.Layout, "shard_images", 12)


@pytest.mark.usefixtures("small_shards")
def test_resuming_after_any_shard_ends_with_the_same_bytes(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(tmp_path / "whole", backbone_folder, image_tree)
    found = extract(whole)
    expected = contents(whole.out)
    assert found.bytes == sum(len(data) for name, data in expected.items() if name.endswith("safetensors"))
    shards = sum(name.endswith("safetensors") for name in expected)
    assert shards == found.shards == 2 * (3 + 2)
    write = extraction.write_shard
    for stop in range(shards):
        stopped = replace(whole, out=tmp_path / f"stopped-{stop}")
        written: list[Path] = []

        def until(path: Path, *rest: object, stop: int = stop, written: list[Path] = written) -> str:
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(path)
            return write(path, *rest)

        monkeypatch.setattr(extraction, "write_shard", until)
        with pytest.raises(KeyboardInterrupt):
            extract(stopped)
        monkeypatch.setattr(extraction, "write_shard", write)
        with pytest.raises(DiffLensError, match=r"is not finished|no manifest"):
            FeatureStore(stopped.out)
        extract(replace(stopped, resume=True))
        assert contents(stopped.out) == expected


@pytest.mark.usefixtures("small_shards")
def test_noise_steps_can_be_added(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    both = config(tmp_path / "both", backbone_folder, image_tree)
    extract(both)
    one = replace(both, out=tmp_path / "one", noise_steps=(9,))
    extract(one)
    with pytest.raises(DiffLensError, match=r"noise_steps was \[9\], now \[3\]"):
        extract(replace(one, noise_steps=(3,), resume=True))
    kept = {
        name: (one.out / name).stat().st_mtime_ns
        for name in contents(one.out)
        if name.endswith("safetensors")
    }
    extract(replace(one, noise_steps=(3, 9), resume=True))
    assert contents(one.out) == contents(both.out)
    assert all((one.out / name).stat().st_mtime_ns == time for name, time in kept.items())


def test_a_store_that_is_continued_keeps_its_noise(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stores of earlier versions, test images have the noise of training images."""
    both = config(tmp_path / "both", backbone_folder, image_tree)
    extract(both)
    monkeypatch.setattr(split, "TEST_IMAGES", 0)
    earlier = replace(both, out=tmp_path / "earlier")
    extract(earlier)
    one = replace(both, out=tmp_path / "one", noise_steps=(9,))
    extract(one)
    monkeypatch.undo()
    extract(replace(one, noise_steps=(3, 9), resume=True))
    assert contents(one.out) == contents(earlier.out) != contents(both.out)
    assert FeatureStore(one.out).index("val").tolist() == [*range(15)]


@pytest.mark.parametrize(("count", "module"), [(4, "difflens"), (2, "tests.helpers.slow_files")])
def test_several_processes_write_what_one_writes(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, count: int, module: str
) -> None:
    """Also where renaming a file takes half a second."""
    one = config(tmp_path / "one", backbone_folder, image_tree)
    extract(one)
    options = shlex.split("--blocks 4 6 --noise-steps 3 9")
    run_several(
        *(count, module, "extract", "--backbone", backbone_folder, "--data", image_tree, *options),
        *("--workers", one.workers, "--out", tmp_path / "several"),
    )
    assert contents(tmp_path / "several") == contents(one.out)


def test_options_of_what_is_stored(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    plain = config(tmp_path / "plain", backbone_folder, image_tree)
    extract(plain)
    pooled = replace(plain, out=tmp_path / "pooled", pool=2, dtype="bfloat16", limit=5, splits=("test",))
    lines: list[str] = []
    result = extract(pooled, lines.append)
    maps = FeatureStore(pooled.out).maps("val", 6, 3)
    assert (maps.shape, maps.dtype) == ((5, 16, 2, 2), torch.bfloat16)
    kept = limited(load_data(str(image_tree)).test, 5, 0)
    assert kept.labels is not None
    assert kept.labels.bincount().tolist() in ([2, 2, 1], [2, 1, 2], [1, 2, 2])
    full = FeatureStore(plain.out).maps("val", 6, 3)[kept.index]
    expected = torch.nn.functional.adaptive_avg_pool2d(full.float(), 2)
    torch.testing.assert_close(maps[:].float(), expected, atol=0.02, rtol=0.02)
    assert f"{result.predicted_bytes:,} bytes" in lines[0]
    assert result.bytes == pytest.approx(result.predicted_bytes, rel=0.1)


def test_draws_are_averaged(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    from difflens import FrozenExtractor, load_backbone

    many = config(tmp_path / "many", backbone_folder, image_tree, draws=3, dtype="float32", limit=2)
    extract(many)
    backbone = load_backbone(str(backbone_folder))
    single = FrozenExtractor(backbone, (6,), (9,))
    names = FeatureStore(many.out).ids("train")
    images = to_float(torch.stack([read_image(image_tree / name) for name in names]))
    index = limited(load_data(str(image_tree)).train, 2, 0).index
    maps = [single(images, index, draw)[6, 9] for draw in range(3)]
    torch.testing.assert_close(
        FeatureStore(many.out).maps("train", 6, 9)[:], sum(maps) / 3, atol=1e-5, rtol=1e-4
    )


def test_parquet(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    plain = config(tmp_path / "plain", backbone_folder, image_tree, noise_steps=(3,))
    extract(plain)
    table = replace(plain, out=tmp_path / "table", format="parquet")
    found = extract(table)
    assert found.bytes == pytest.approx(found.predicted_bytes, rel=0.1)
    read = pyarrow.parquet.read_table(table.out / "train" / "t00003-00000.parquet")
    store = FeatureStore(plain.out)
    assert read["image"].to_pylist() == store.ids("train")
    assert read["label"].to_pylist() == store.labels("train").tolist()
    shape = json.loads(read.schema.metadata[b"block006"])
    values = torch.tensor(read["block006"].to_pylist()).reshape(-1, *shape)
    assert torch.equal(values, store.maps("train", 6, 3)[:].float())
    with pytest.raises(DiffLensError, match="parquet files for other programs"):
        FeatureStore(table.out)


def test_images_without_labels(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    loose = config(tmp_path / "store", backbone_folder, image_tree / "val", unlabelled=True)
    extract(loose)
    store = FeatureStore(loose.out)
    assert len(store.ids("train")) == 15
    assert store.labels("train").tolist() == [-1] * 15


def test_bad_images_are_left_out(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    (image_tree / "train" / "red" / "3.png").write_bytes(b"not an image")
    run = config(tmp_path / "store", backbone_folder, image_tree)
    with pytest.raises(DiffLensError, match=r"train/red/3\.png.*--on-bad-image skip leaves it out"):
        extract(run)
    assert not run.out.exists()
    result = extract(replace(run, out=tmp_path / "other", on_bad_image="skip"))
    assert result.skipped == 1
    assert [line.split(":")[0] for line in result.skipped_images] == ["train/red/3.png"]
    store = FeatureStore(tmp_path / "other")
    assert "train/red/3.png" not in store.ids("train")
    assert len(store.maps("train", 4, 3)) == len(store.ids("train")) == 35


@pytest.mark.usefixtures("small_shards")
def test_a_bad_image_may_be_skipped_later(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    (image_tree / "train" / "red" / "3.png").write_bytes(b"not an image")
    whole = config(tmp_path / "whole", backbone_folder, image_tree, on_bad_image="skip")
    extract(whole)
    stopped = replace(whole, out=tmp_path / "stopped", on_bad_image="error")
    with pytest.raises(DiffLensError, match=r"train/red/3\.png"):
        extract(stopped)
    assert list(stopped.out.rglob("*.safetensors"))
    extract(replace(stopped, on_bad_image="skip", resume=True))
    assert contents(stopped.out) == contents(whole.out)


@pytest.mark.usefixtures("small_shards")
def test_a_refused_or_stopped_extension_leaves_the_store_usable(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(tmp_path / "store", backbone_folder, image_tree, noise_steps=(3,))
    extract(first)
    before = contents(first.out)
    more = replace(first, noise_steps=(3, 9), resume=True)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 1000))
        with pytest.raises(DiffLensError, match="are free there"):
            extract(more)
    assert contents(first.out) == before
    with monkeypatch.context() as patched:
        patched.setattr(extraction._Extraction, "_finish", lambda self: 1 / 0)
        patched.setattr(extraction.RunDirectory, "write_json", lambda self, name, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract(more)
    assert FeatureStore(first.out).noise_steps == (3,)
    extract(more)
    assert FeatureStore(first.out).noise_steps == (3, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (12,)}, "no block 12"),
        ({"noise_steps": (100,)}, "noise step 100 is outside"),
        ({"draws": 0}, "draws is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"splits": ()}, "there is no split to read"),
        ({"splits": ("test",), "unlabelled": True}, "leave out --splits"),
        ({"format": "parquet", "dtype": "bfloat16"}, "parquet has no type bfloat16"),
        ({"backbone": "nothing"}, "no backbone 'nothing'"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so_and_leaves_nothing(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        extract(config(tmp_path / "store", backbone_folder, image_tree, **changes))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (4,)}, r"blocks was \[4, 6\], now \[4\]"),
        ({"pool": 2}, "pool was 0, now 2"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"dtype": "float32"}, "dtype was 'float16', now 'float32'"),
        ({"backbone": "fashion", "blocks": (4, 6)}, "backbone was"),
    ],
    ids=str,
)
def test_a_store_of_something_else_is_refused_unharmed(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    first = config(tmp_path / "store", backbone_folder, image_tree)
    extract(first)
    before = contents(first.out)
    with pytest.raises(DiffLensError, match=message):
        extract(replace(first, resume=True, **changes))
    with pytest.raises(DiffLensError, match="already holds a run"):
        extract(replace(first, **changes))
    assert contents(first.out) == before


def test_a_changed_image_folder_is_noticed(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    first = config(tmp_path / "store", backbone_folder, image_tree)
    extract(first)
    (image_tree / "train" / "red" / "0.png").unlink()
    with pytest.raises(DiffLensError, match="data_fingerprint was"):
        extract(replace(first, resume=True))


def test_too_little_disk_is_an_error_before(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 1000))
    with pytest.raises(DiffLensError, match="and 1e-06 GB are free there"):
        extract(config(tmp_path / "store", backbone_folder, image_tree))
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_disk_that_fills_up_loses_nothing(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(tmp_path / "whole", backbone_folder, image_tree)
    extract(whole)
    full = replace(whole, out=tmp_path / "full")
    real, calls = extraction.write_shard, []

    def write(path: Path, *rest: object) -> str:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(extraction, "write_shard", write)
    with pytest.raises(DiffLensError, match=r"cannot be written: No space left.* --resume goes on"):
        extract(full)
    monkeypatch.undo()
    monkeypatch.setattr(extraction.Layout, "shard_images", 12)
    assert len(list(full.out.rglob("*.safetensors"))) == 3
    extract(replace(full, resume=True))
    assert contents(full.out) == contents(whole.out)


def test_two_commands_cannot_write_to_one_folder(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from difflens.run import directory as runs

    monkeypatch.setattr(runs, "_LOCK_ATTEMPTS", 1)
    program = (
        "import sys, pathlib; from difflens.run.directory import RunDirectory\n"
        "run = RunDirectory(pathlib.Path(sys.argv[1]), 'extract', {})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DiffLensError, match="another process is writing to"):
        runs.RunDirectory(tmp_path / "store", "extract", {}, resume=True)
    holder.kill()
    holder.wait()
    runs.RunDirectory(tmp_path / "store", "extract", {}, resume=True)


def test_a_limit_in_a_store_and_in_a_probe_on_it_keep_the_same_images(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    """The seed of the store draws them, whatever the seed of the head."""
    stored = config(tmp_path / "store", backbone_folder, image_tree, limit=6, seed=7)
    extract(stored)
    assert sorted(FeatureStore(stored.out).labels("train").tolist()) == [0, 0, 1, 1, 2, 2]
    head = ProbeConfig(
        out=tmp_path / "head",
        store=stored.out,
        backbone=str(backbone_folder),
        data=str(image_tree),
        head="knn",
        blocks=(4,),
        noise_steps=(3,),
        limit=3,
        seed=1,
        seeds=2,
        device="cpu",
    )
    assert [seed.train_images for seed in probe(head).seeds] == [3, 3]


def test_a_limited_store_of_version_0_1_is_refused_by_name(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    stored = config(tmp_path / "store", backbone_folder, image_tree, limit=6)
    extract(stored)
    file = stored.out / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "limit_keeps" not in line))
    with pytest.raises(DiffLensError, match="limit_keeps was 'the first images', now"):
        extract(replace(stored, resume=True))


class Stopped(Exception):
    """A stop in the middle of a shard."""


@pytest.mark.parametrize("damage", [None, "process", "cut", "steps"])
def test_a_stop_within_a_shard_loses_only_what_was_read_since_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    """Every batch is kept at --checkpoint-minutes 0; --resume reads the rest, and ends with equal bytes."""
    whole = ExtractConfig(
        out=tmp_path / "whole",
        backbone="random:fashion",
        data="fashion",
        splits=("train",),
        blocks=(1, 2),
        noise_steps=(3,),
        pool=4,
        limit=200,
        device="cpu",
        checkpoint_minutes=0,
    )
    extract(whole)
    expected = contents(whole.out)
    assert not [name for name in expected if "partial" in name]
    stopped = replace(whole, out=tmp_path / "stopped")
    real = extraction.Reading.features
    read: list[int] = []

    def features(*arguments: object) -> object:
        for number, (rows, maps) in enumerate(real(*arguments)):
            if stop and number == stop:
                raise Stopped
            read.append(len(rows))
            yield rows, maps

    monkeypatch.setattr(extraction.Reading, "features", features)
    stop = 2
    if damage == "process":  # the first of two stops was in a process of another number
        stop = 1
        with pytest.raises(Stopped):
            extract(stopped)
        (stopped.out / ".checksums-0.partial").rename(stopped.out / ".checksums-1.partial")
        stopped = replace(stopped, resume=True)
    with pytest.raises(Stopped):
        extract(stopped)
    (kept,) = (stopped.out / "train").glob(".shard-*")
    lines: list[str] = []
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-100])
    stop = 0
    del read[:]
    again = replace(stopped, resume=True)
    if damage == "steps":
        again = replace(again, noise_steps=(3, 9))
    extract(again, lines.append)
    lost = damage in ("cut", "steps")
    assert read == ([64, 64, 64, 8] if lost else [64, 8])
    assert any("does not fit and is read again" in line for line in lines) == lost
    if damage != "steps":
        assert contents(stopped.out) == expected
    assert not kept.exists()


def test_a_stop_within_a_shard_keeps_latents_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from difflens.extractors import cache, partial
    from tests.helpers.families import write_dit
    from tests.helpers.images import make_image_tree

    monkeypatch.setattr(partial, "READ_BATCH", 8)
    monkeypatch.setattr(cache, "READ_BATCH", 8)
    monkeypatch.setattr(cache.Reading.batches, "__defaults__", (8, 0, 0, "none"))
    network = write_dit(tmp_path / "dit")
    tree = make_image_tree(tmp_path / "images", per_class=7)
    (tree / "train" / "green" / "2.png").write_bytes(b"?")
    whole = config(
        tmp_path / "whole",
        network,
        tree,
        blocks=(1, 2),
        splits=("train",),
        on_bad_image="skip",
        checkpoint_minutes=0,
    )
    extract(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    real = extraction._Extraction._write_partial

    def stop(self: extraction._Extraction, part: partial.PartialShard) -> None:
        real(self, part)
        if part.seen == 16:
            raise Stopped

    monkeypatch.setattr(extraction._Extraction, "_write_partial", stop)
    with pytest.raises(Stopped):
        extract(stopped)
    monkeypatch.setattr(extraction._Extraction, "_write_partial", real)
    extract(replace(stopped, resume=True))
    assert contents(stopped.out) == contents(whole.out)
