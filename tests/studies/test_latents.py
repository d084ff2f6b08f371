"""Latents and levels that are no whole steps in sweeps, in CKA and in stores."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflens import (
    CkaConfig,
    DiffLensError,
    ExtractConfig,
    FeatureStore,
    ProbeConfig,
    SweepConfig,
    cka,
    extract,
    load_backbone,
    probe,
    sweep,
)
from difflens.data.images import fit, read_image, to_float
from difflens.extractors.cache import Reading
from difflens.extractors.latents import Latents
from difflens.studies import extract as extraction
from tests.helpers.encoded import count_encoded
from tests.helpers.families import write_edm, write_flow, write_ldm
from tests.helpers.files import contents


@pytest.fixture(scope="module")
def ldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ldm(tmp_path_factory.mktemp("ldm"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flow(tmp_path_factory.mktemp("flow"))


def config(out: Path, backbone: Path, images: Path, /, **changes: object) -> ExtractConfig:
    base = ExtractConfig(
        out=out, backbone=str(backbone), data=str(images), blocks=(2, 6), device="cpu", workers=0
    )
    return replace(base, **changes)


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if an image is read."""
    monkeypatch.setattr(Reading, "batches", lambda *_, **__: pytest.fail("an image is read"))


@pytest.mark.parametrize("gigabytes", [4.0, 0.0])
def test_a_sweep_encodes_each_image_once(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float
) -> None:
    run = SweepConfig(
        out=tmp_path / "run",
        backbone=str(ldm),
        data=str(image_tree),
        noise_steps=(3, 40, 200),
        blocks=(1, 6),
        device="cpu",
        workers=0,
        cache_gigabytes=gigabytes,
    )
    with monkeypatch.context() as patched:
        patched.setattr(Latents, "of", lambda *_: None)
        uncached = sweep(replace(run, out=tmp_path / "uncached"))
    encoded = count_encoded(monkeypatch)
    result = sweep(run)
    assert encoded == [64]
    # the next commands have output folders of their own
    assert {**result.metrics(), "next": ()} == {**uncached.metrics(), "next": ()}
    assert not (run.out / "cache").exists()
    more = sweep(replace(run, noise_steps=(3, 20, 40, 200), resume=True))
    assert encoded == [64, 64]
    assert torch.equal(more.accuracy["ridge"][[0, 2, 3]], result.accuracy["ridge"])


def test_cka_encodes_each_batch_once(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [*image_tree.rglob("*.png")]
    for copy in range(2):
        for k, path in enumerate(images):
            shutil.copy(path, path.with_name(f"copy-{copy}-{k}.png"))
    encoded = count_encoded(monkeypatch)
    run = CkaConfig(
        out=tmp_path / "run",
        backbone=str(ldm),
        data=str(image_tree / "train"),
        noise_steps=(3, 200),
        blocks=(1, 6),
        device="cpu",
        workers=0,
    )
    minibatches, two = cka(run).minibatches, len(encoded)
    cka(replace(run, out=tmp_path / "one", noise_steps=(3,)))
    mirrored = 2 * two - len(encoded)  # mirror images, for the alignment, are encoded at each noise step
    assert two == minibatches + 2 * mirrored


def test_a_store_keeps_latents(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = config(tmp_path / "both", ldm, image_tree, noise_steps=(3, 200))
    result = extract(both)
    assert result.bytes == pytest.approx(result.predicted_bytes, rel=0.01)
    assert result.shards == 4
    files = [*both.out.rglob("*.safetensors")]
    assert result.bytes == sum(file.stat().st_size for file in files)
    kept = load_file(both.out / "val" / "latents-00000.safetensors")
    assert kept["latents"].shape == (15, 3, 16, 16)
    assert kept["latents"].dtype == torch.float32
    backbone = load_backbone(str(ldm))
    name = FeatureStore(both.out).ids("val")[4]
    image = to_float(fit(read_image(image_tree / name), 3, 32))[None]
    torch.testing.assert_close(kept["latents"][4:5], backbone.encode(image), atol=1e-5, rtol=1e-5)
    subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=both.out, check=True)
    assert "latents-00000.safetensors" in (both.out / "checksums.sha256").read_text()
    manifest = json.loads((both.out / "manifest.json").read_text())
    assert manifest["latents"] == [3, 16, 16]
    assert manifest["noise_steps"] == [3, 200]
    assert manifest["noise"]["unit"] == "step"
    assert manifest["noise"]["process"] == backbone.process.describe()
    assert manifest["noise"]["log_snr"] == pytest.approx([backbone.process.log_snr(t) for t in (3, 200)])

    one = replace(both, out=tmp_path / "one", noise_steps=(200,))
    encoded = count_encoded(monkeypatch)
    extract(one)
    assert encoded == [64, 64]
    with monkeypatch.context() as patched:
        unread(patched)
        extract(replace(one, noise_steps=(3, 200), resume=True))
    assert encoded == [64, 64]
    assert contents(one.out) == contents(both.out)


def test_resuming_after_any_file_ends_with_the_same_bytes(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction.Layout, "shard_images", 20)
    (image_tree / "train" / "red" / "3.png").write_bytes(b"not an image")
    whole = config(tmp_path / "whole", ldm, image_tree, noise_steps=(3, 200), on_bad_image="skip")
    extract(whole)
    expected = contents(whole.out)
    files = sum(name.endswith("safetensors") for name in expected)
    assert files == 3 * 3
    write = extraction.write_bytes
    for stop in range(files):
        stopped, written = replace(whole, out=tmp_path / f"stopped-{stop}"), list[Path]()

        def until(path: Path, content: bytes, stop: int = stop, written: list[Path] = written) -> None:
            if path.suffix == ".safetensors":
                if len(written) == stop:
                    raise KeyboardInterrupt
                written.append(path)
            write(path, content)

        with monkeypatch.context() as patched:
            patched.setattr("difflens.extractors.store.write_bytes", until)
            with pytest.raises(KeyboardInterrupt):
                extract(stopped)
        extract(replace(stopped, resume=True))
        assert contents(stopped.out) == expected


def test_latents_that_are_lost_or_damaged(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path / "store", ldm, image_tree, noise_steps=(3,))
    extract(run)
    before = contents(run.out)
    latents = run.out / "val" / "latents-00000.safetensors"
    latents.unlink()
    assert FeatureStore(run.out).maps("val", 2, 3).shape == (15, 8, 16, 16)  # features need no latents
    encoded = count_encoded(monkeypatch)
    extract(replace(run, resume=True))
    assert encoded == [64]
    assert contents(run.out) == before
    latents.write_bytes(latents.read_bytes()[:500])
    extract(replace(run, resume=True))
    assert encoded == [64, 64]
    assert contents(run.out) == before


def test_a_table_keeps_latents_too(
    ldm: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = config(tmp_path / "both", ldm, image_tree, noise_steps=(3, 200), format="parquet")
    extract(both)
    one = replace(both, out=tmp_path / "one", noise_steps=(3,))
    extract(one)
    unread(monkeypatch)
    extract(replace(one, noise_steps=(3, 200), resume=True))
    assert contents(one.out) == contents(both.out)


def test_small_features_do_not_make_large_shards_of_latents() -> None:
    layout = extraction.Layout({"train": 10_000}, {1: (4, 1, 1)}, (3,), "float16", 1, (4, 32, 32))
    assert layout.shard_images * 4 * 4 * 32 * 32 < 2 * 1e6
    assert replace(layout, latents=None).shard_images > 10_000


def test_a_store_of_levels_that_are_no_whole_steps(flow: Path, image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "store", flow, image_tree, noise_steps=(0.5, 1))
    extract(run)
    extract(replace(run, noise_steps=(0.1, 0.5, 1), resume=True))
    whole = replace(run, out=tmp_path / "whole", noise_steps=(1.0, 0.5, 0.1))
    extract(whole)
    assert contents(run.out) == contents(whole.out)
    assert (run.out / "val" / "t0.1-00000.safetensors").is_file()
    assert not list(run.out.rglob("latents*"))
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert "latents" not in manifest
    assert manifest["noise"]["unit"] == "time"
    assert manifest["noise"]["log_snr"][1:] == [0.0, None]
    store = FeatureStore(run.out)
    assert store.noise_steps == (0.1, 0.5, 1.0)
    assert all(isinstance(t, float) for t in store.noise_steps)
    assert torch.equal(store.maps("val", 2, 1)[:], store.maps("val", 2, 1.0)[:])
    with pytest.raises(
        DiffLensError, match=r"no block 2 at noise step 0\.2: .* noise steps 0\.1, 0\.5, 1\.0"
    ):
        store.maps("val", 2, 0.2)
    with pytest.raises(DiffLensError, match="noise step 2 is outside the schedule"):
        extract(replace(run, noise_steps=(0.1, 0.5, 1, 2), resume=True))


@pytest.mark.parametrize("head", ["linear", "difformer"])
def test_a_probe_on_stored_levels(flow: Path, image_tree: Path, tmp_path: Path, head: str) -> None:
    extract(config(tmp_path / "store", flow, image_tree, noise_steps=(0.1, 0.5, 1)))
    run = ProbeConfig(
        out=tmp_path / "stored",
        backbone=str(flow),
        data=str(image_tree),
        head=head,
        blocks=(2, 6) if head == "difformer" else (6,),
        noise_steps=(0.1, 0.5) if head == "difformer" else (0.5,),
        epochs=2,
        width=16 if head == "difformer" else None,
        device="cpu",
        workers=0,
    )
    stored = probe(replace(run, store=tmp_path / "store", workers=None))
    online = probe(replace(run, out=tmp_path / "online"))
    assert stored.evaluations[0].top1 == online.evaluations[0].top1
    assert stored.model.probe.extractor.noise_steps == run.noise_steps


def test_a_store_at_sigmas(image_tree: Path, tmp_path: Path) -> None:
    edm = write_edm(tmp_path / "edm")
    run = config(tmp_path / "store", edm, image_tree, noise_steps=(80, 0.002))
    extract(run)
    assert {path.name for path in run.out.rglob("t*.safetensors")} == {
        "t0.002-00000.safetensors",
        "t80.0-00000.safetensors",
    }
    assert FeatureStore(run.out).noise_steps == (0.002, 80.0)


def test_pixel_networks_with_whole_steps_store_what_they_did(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "store", backbone_folder, image_tree, noise_steps=(3,))
    extract(run)
    assert {*contents(run.out)} == {
        "checksums.sha256",
        "config.yaml",
        "manifest.json",
        "metrics.json",
        *(
            f"{split}/{name}"
            for split in ("train", "val")
            for name in ("images.csv", "t00003-00000.safetensors")
        ),
    }
    assert not {"latents", "noise"} & {*json.loads((run.out / "manifest.json").read_text())}
