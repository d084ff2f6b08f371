"""A damaged file of a store is named and made again by `extract --resume`, and refused by readers."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from difflens import DiffLensError, ExtractConfig, FeatureStore, ProbeConfig, extract, probe
from difflens.studies import extract as extraction
from tests.helpers.families import write_ldm
from tests.helpers.files import contents
from tests.helpers.images import make_image_tree
from tests.helpers.processes import run_two

Damage = Callable[[Path, Path], object]


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


def swap(path: Path, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "flipped": flip,
    "emptied": lambda path, _: path.write_bytes(b""),
    "halved": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": lambda path, _: path.unlink(),
    "swapped": swap,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExtractConfig]:
    """Stores of 15 images in shards of 6, 6 and 3, with latents, at two noise steps."""
    root = tmp_path_factory.mktemp("made")
    common = ExtractConfig(
        out=root / "safetensors",
        backbone=str(write_ldm(root / "ldm")),
        data=str(make_image_tree(root / "images", per_class=1)),
        splits=("test",),
        blocks=(6,),
        noise_steps=(3, 200),
        device="cpu",
        workers=0,
    )
    tables = replace(common, out=root / "parquet", format="parquet")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extraction.Layout, "shard_images", 6)
        extract(common)
        extract(tables)
    return {"safetensors": common, "parquet": tables}


@pytest.fixture
def copy(
    made: dict[str, ExtractConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ExtractConfig]:
    monkeypatch.setattr(extraction.Layout, "shard_images", 6)

    def copied(form: str) -> ExtractConfig:
        shutil.copytree(made[form].out, tmp_path / "store")
        return replace(made[form], out=tmp_path / "store", resume=True)

    return copied


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file", ["t00003-00000.safetensors", "t00003-00000.parquet", "latents-00000.safetensors"]
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_file_is_named_and_made_again(
    copy: Callable[[str], ExtractConfig], file: str, damage: str, finished: bool
) -> None:
    form = "parquet" if file.endswith("parquet") else "safetensors"
    run = copy(form)
    before = contents(run.out)
    if not finished:  # as a killed process leaves it
        (run.out / "metrics.json").unlink()
        (run.out / "checksums.sha256").rename(run.out / ".checksums-1.partial")
        (run.out / "val" / f"t00200-00002.{form}").unlink()
    other = file.replace("-00000", "-00001")
    DAMAGES[damage](run.out / "val" / file, run.out / "val" / other)
    lines: list[str] = []
    extract(run, lines.append)
    assert contents(run.out) == before
    named = [line.split()[0] for line in lines if "is damaged and is made again" in line]
    expected = {"swapped": [f"val/{file}", f"val/{other}"], "deleted": []}
    assert named == expected.get(damage, [f"val/{file}"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reader_refuses_a_damaged_shard_by_name(copy: Callable[[str], ExtractConfig], damage: str) -> None:
    run = copy("safetensors")
    FeatureStore(run.out).verify()
    name = "t00200-00001.safetensors"
    DAMAGES[damage](run.out / "val" / name, run.out / "val" / "t00200-00000.safetensors")
    message = {"swapped": "t00200-0000", "deleted": f"of 6 shards, 1 is missing, val/{name}"}
    with pytest.raises(DiffLensError, match=message.get(damage, name)):
        store = FeatureStore(run.out)
        assert damage == "flipped"  # the others are seen when the store is opened
        store.verify()


@pytest.mark.parametrize("file", ["manifest.json", "val/images.csv", "val/latents-00001.safetensors"])
def test_all_files_are_verified(copy: Callable[[str], ExtractConfig], file: str) -> None:
    run = copy("safetensors")
    before = contents(run.out)
    path = run.out / file
    path.write_bytes(path.read_bytes().replace(b"red", b"rod").replace(b"unit", b"Unit"))
    if file.endswith("safetensors"):
        flip(path, path)
    with pytest.raises(DiffLensError, match=f"do not have their checksums: {file}"):
        FeatureStore(run.out).verify()
    extract(run)
    assert contents(run.out) == before


def test_shards_of_swapped_noise_steps_have_other_checksums(copy: Callable[[str], ExtractConfig]) -> None:
    run = copy("safetensors")
    names = [f"val/t00{step}-00000.safetensors" for step in ("003", "200")]
    swap(*(run.out / name for name in names))
    options = ProbeConfig(
        out=run.out.with_name("probe"),
        store=run.out,
        backbone=run.backbone,
        data=run.data,
        head="linear",
        verify=True,
        device="cpu",
    )
    with pytest.raises(DiffLensError, match=", ".join(names)):
        probe(options)
    assert not options.out.exists()
    with pytest.raises(DiffLensError, match="without --store there is nothing to verify: leave out --verify"):
        probe(replace(options, store=None))


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_a_store_without_checksums(copy: Callable[[str], ExtractConfig], form: str) -> None:
    """A stopped run of version 0.1 has none: its files are kept if their sizes and headers are right."""
    run = copy(form)
    before = contents(run.out)
    (run.out / "checksums.sha256").unlink()
    if form == "safetensors":
        with pytest.raises(DiffLensError, match="has no checksums of 11 of its 11 files"):
            FeatureStore(run.out).verify()
    kept, halved = (run.out / "val" / f"t00003-0000{k}.{form}" for k in range(2))
    DAMAGES["halved"](halved, kept)
    time = kept.stat().st_mtime_ns
    lines: list[str] = []
    extract(run, lines.append)
    assert contents(run.out) == before
    assert kept.stat().st_mtime_ns == time
    assert lines[0] == f"val/{halved.name} is damaged and is made again"
    assert lines[1] == "9 of 9 files without a checksum; kept, as sizes and headers are right: 8"


def test_two_processes_share_the_reading(made: dict[str, ExtractConfig], tmp_path: Path) -> None:
    whole = replace(made["safetensors"], out=tmp_path / "whole")
    extract(whole)
    two = tmp_path / "two"
    shutil.copytree(whole.out, two)
    for damage, name in (("flipped", "t00003"), ("emptied", "t00200"), ("halved", "latents")):
        path = two / "val" / f"{name}-00000.safetensors"
        DAMAGES[damage](path, path)
    options = shlex.split("--splits test --blocks 6 --noise-steps 3 200 --workers 0 --device cpu --resume")
    run_two("extract", "--backbone", whole.backbone, "--data", whole.data, *options, "--out", two)
    assert contents(two) == contents(whole.out)
