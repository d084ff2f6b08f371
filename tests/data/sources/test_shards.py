"""WebDataset shards give what a folder of the same images gives; what is damaged is named with its key."""

import io
import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens import DiffLensError, ExtractConfig, ProbeConfig, SweepConfig, extract, pretrain, probe, sweep
from difflens.data.images import BadImage
from difflens.data.load import load_data, load_unlabelled
from difflens.data.loader import iterate
from difflens.data.sources.shards import ShardSplit
from difflens.studies import extract as extraction
from tests.helpers.files import contents
from tests.helpers.pretraining import config as pretraining
from tests.helpers.pretraining import curve
from tests.helpers.shards import make_shards

Files = list[tuple[str, bytes]]


def picture(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), grey).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def samples(count: int, first: int = 0) -> Files:
    """So many images of two classes."""
    return [
        file
        for k in range(first, first + count)
        for file in ((f"{k:04d}.png", picture(k)), (f"{k:04d}.cls", b"%d" % (k % 2)))
    ]


@pytest.mark.parametrize("words", [False, True])
def test_images_and_labels_are_those_of_the_folder(image_tree: Path, tmp_path: Path, words: bool) -> None:
    shards = load_data(f"wds:{make_shards(image_tree, tmp_path / 'shards', words=words)}")
    folder = load_data(str(image_tree))
    assert shards.classes == (folder.classes if words else ("0", "1", "2"))
    for mine, theirs in ((shards.train, folder.train), (shards.test, folder.test)):
        assert len(mine) == len(theirs)
        assert torch.equal(mine.labels, theirs.labels)
        assert all(torch.equal(mine.image(i), theirs.image(i)) for i in range(len(mine)))
    assert shards.train.ids[11] == "train-001.tar/0011.png"
    unlabelled = load_unlabelled(shards.spec)
    assert unlabelled.labels is None
    assert unlabelled.ids == shards.train.ids


def test_worker_processes_read_what_one_reads(image_tree: Path, tmp_path: Path) -> None:
    split = load_data(f"wds:{make_shards(image_tree, tmp_path / 'shards')}").train
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    one, two = (
        [batch.images for batch in iterate(split, channels=3, side=16, batch_size=5, rows=rows, workers=n)]
        for n in (0, 2)
    )
    assert len(one) == 8
    assert all(map(torch.equal, one, two))


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores have a file for each twelve images."""
    monkeypatch.setattr(extraction.Layout, "shard_images", 12)


@pytest.mark.usefixtures("small_files")
def test_extraction_equals_the_folders_and_goes_on_by_shard(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = make_shards(image_tree, tmp_path / "shards", images=12)
    whole = ExtractConfig(
        out=tmp_path / "whole",
        backbone=str(backbone_folder),
        data=str(image_tree),
        blocks=(6,),
        noise_steps=(9,),
        splits=("train",),
        device="cpu",
        workers=0,
    )
    extract(whole)
    shards = replace(whole, out=tmp_path / "shards-store", data=f"wds:{pattern}")
    write = extraction.write_shard

    def only_first(path: Path, *rest: object) -> str:
        if "00001" in path.name:
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(extraction, "write_shard", only_first)
    with pytest.raises(KeyboardInterrupt):
        extract(shards)
    monkeypatch.setattr(extraction, "write_shard", write)
    opened: list[str] = []
    read = ShardSplit.image

    def noted(self: ShardSplit, i: int) -> torch.Tensor:
        opened.append(self.ids[i].partition("/")[0])
        return read(self, i)

    monkeypatch.setattr(ShardSplit, "image", noted)
    extract(replace(shards, resume=True))
    # a few images are looked at before, for what reading changes
    assert opened[-24:] == ["train-001.tar"] * 12 + ["train-002.tar"] * 12
    assert opened.count("train-000.tar") < 12
    mine, theirs = contents(shards.out), contents(whole.out)
    features = [name for name in theirs if name.endswith(".safetensors")]
    assert len(features) == 3
    assert all(mine[name] == theirs[name] for name in features)


def test_probe_sweep_and_pretrain_equal_the_folders(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    pattern = f"wds:{make_shards(image_tree, tmp_path / 'shards', words=True)}"
    found = []
    for name, data in (("folder", str(image_tree)), ("shards", pattern)):
        reading = {"backbone": str(backbone_folder), "data": data, "device": "cpu", "workers": 0}
        probed = probe(
            ProbeConfig(out=tmp_path / f"{name}-probe", head="linear", blocks=(6,), epochs=1, **reading)
        )
        swept = sweep(SweepConfig(out=tmp_path / f"{name}-sweep", blocks=(6, 7), noise_steps=(5,), **reading))
        trained = pretraining(tmp_path / f"{name}-pretrain", Path(data), epochs=1)
        pretrain(replace(trained, data=data))
        measured = {key: value for key, value in swept.metrics().items() if key != "next"}
        found.append((probed.nll, measured, curve(trained.out)))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert found[0][2] == found[1][2]


def test_without_names_of_splits_a_fifth_is_held_out(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", samples(10, 10 * number))
    data = load_data(f"wds:{tmp_path}/{{0..1}}.tar")
    assert (len(data.train), len(data.test)) == (16, 4)
    assert torch.equal(data.test.index, torch.tensor([8, 9, 18, 19]))
    assert int(data.test.image(3)[0, 0, 0]) == 19


def test_a_shard_that_is_cut_is_named_with_its_last_key(tmp_path: Path) -> None:
    """Wherever it is cut: within an image, at its end, within a header, before the end of the tar file."""
    path = write_tar(tmp_path / "a.tar", samples(4))
    content = path.read_bytes()
    end = 4 * 4 * 512  # of each sample, two headers and two files of one block
    assert content[end - 512 : end].startswith(b"1")
    for length in range(100, end + 500, 412):
        path.write_bytes(content[:length])
        with pytest.raises(DiffLensError, match=r"a\.tar (is cut or damaged|cannot be read)") as raised:
            load_data(f"wds:{path}")
        # the sample that is cut, or the last whole one
        cut = length // (4 * 512)
        assert cut == 0 or re.search(rf"key {cut - 1:04d}|key {cut:04d}", str(raised.value))
    path.write_bytes(content[: end - 1024] + b"?" * 512 + content[end - 512 :])
    with pytest.raises(DiffLensError, match=r"a\.tar is cut or damaged behind key 0003"):
        load_data(f"wds:{path}")


def test_without_labels_the_same_images_are_held_out(tmp_path: Path) -> None:
    spec = f"wds:{write_tar(tmp_path / 'a.tar', samples(20))}"
    data, bare = load_data(spec), load_data(spec, labels=False)
    assert bare.test.ids == data.test.ids
    assert load_unlabelled(spec).ids == bare.train.ids == data.train.ids
    assert len(data.test) == 4
    assert bare.test.labels is None
    assert bare.test.noise_index.equal(data.test.noise_index)


def test_a_picture_that_cannot_be_decoded_is_named_with_its_key(tmp_path: Path) -> None:
    files = samples(6)[::2]  # without labels
    files[2] = ("0002.png", files[2][1][:40])
    path = write_tar(tmp_path / "a.tar", files)
    split = load_unlabelled(f"wds:{path}")
    with pytest.raises(BadImage, match=rf"cannot read image {path}, key 0002: "):
        split.image(2)
    bad: list[str] = []
    batches = [*iterate(split, channels=1, side=8, batch_size=8, on_bad_image="skip", bad=bad)]
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 3, 4, 5]]
    assert len(bad) == 1
    assert bad[0].startswith("a.tar/0002.png: ")


def test_changed_images_are_other_data(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(6))
    before = load_data(f"wds:{path}").fingerprint()
    assert load_data(f"wds:{path}").fingerprint() == before
    files = samples(6)
    files[4] = ("0002.png", picture(99))
    write_tar(path, files)
    assert load_data(f"wds:{path}").fingerprint() != before


LABEL = ("0.cls", b"0")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.png", picture())], r"a\.tar, key 0: it has no label"),
        ([("0.png", picture()), ("0.cls", b"cat")], r"a\.tar, key 0: its \.cls is b'cat'"),
        ([("0.png", picture()), ("0.json", b"{}")], r'key 0: its \.json has no "label"'),
        ([("0.png", picture()), ("0.json", b"[[[")], r'key 0: its \.json has no "label"'),
        ([("0.png", picture()), ("0.json", b'{"label": true}')], r'key 0: its \.json has no "label"'),
        ([("0.png", picture()), ("0.json", b" " * 2**21)], r"key 0: its \.json has 2,097,152 bytes"),
        ([LABEL], r"a\.tar, key 0: it has no images"),
        ([("0.png", picture()), ("0.jpg", picture()), LABEL], r"key 0: it has 2 images"),
        ([*samples(2), ("0000.png", picture())], r"key 0000: the key is there twice"),
        ([*samples(2), ("9.png", picture()), ("9.json", b'{"label": "cat"}')], "numbers and labels that are"),
        ([], r"there is no sample in .*a\.tar"),
    ],
)
def test_samples_that_are_refused(tmp_path: Path, files: Files, message: str) -> None:
    path = write_tar(tmp_path / "a.tar", files)
    with pytest.raises(DiffLensError, match=message):
        load_data(f"wds:{path}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{train-0,none}.tar", r"names 2 shards, of which 1 is no file: .*none\.tar"),
        ("{train-0,train-0}.tar", "names a shard twice"),
        ("{train-0,other}.tar", r"other\.tar names no split, and other shards do"),
        ("{train-val,train-0}.tar", r"train-val\.tar names several splits: train, val"),
        ("val-0.tar", "of 1 shard none is for training: they name val"),
        ("{train-0.tar", "braces without a partner"),
        ("{0..999999999999}.tar", "names 1,000,000,000,000 shards; at most 100,000"),
        ("packed.tar", r"packed\.tar cannot be read as a tar file .*must be unpacked"),
    ],
)
def test_patterns_that_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    for name in ("train-0", "other", "train-val", "val-0"):
        write_tar(tmp_path / f"{name}.tar", samples(2))
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(DiffLensError, match=message):
        load_data(f"wds:{tmp_path}/{pattern}")


@pytest.mark.parametrize("pattern", ["pipe:cat a.tar", "https://example.com/a.tar"])
def test_local_shards_only(pattern: str) -> None:
    with pytest.raises(DiffLensError, match="names no local files"):
        load_data(f"wds:{pattern}")


def test_a_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(4))
    write_tar(tmp_path / "test.tar", [("7.png", picture()), ("7.json", json.dumps({"label": 5}).encode())])
    with pytest.raises(DiffLensError, match=r"test\.tar, key 7: no training image has its label 5"):
        load_data(f"wds:{tmp_path}/{{train,test}}.tar")


def test_without_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules, "webdataset"]:
        if name.partition(".")[0] == "webdataset":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DiffLensError, match=r'need `pip install "difflens\[shards\]"`'):
        load_data("wds:a.tar")
