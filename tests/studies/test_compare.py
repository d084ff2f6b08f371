"""`compare` end to end at a small size: its table, resuming, and the errors that it raises."""

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import difflens.backbones.load as loading
from difflens import (
    CompareConfig,
    DiffLensError,
    FidelityConfig,
    FrozenExtractor,
    GenerateConfig,
    ProbeConfig,
    SweepConfig,
    compare,
    fidelity,
    generate,
    load_backbone,
    load_data,
    probe,
    sweep,
)
from difflens.data.images import fit, to_float
from difflens.extractors.cache import FeatureCache
from difflens.extractors.shared import SharedFeatures
from difflens.generation.fidelity import INCEPTION_URL
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.html import linked
from tests.helpers.networks import bigan, write_inception


def config(out: Path, images: Path, *backbones: object, **changes: object) -> CompareConfig:
    base = CompareConfig(
        out=out,
        backbones=tuple(map(str, backbones)),
        data=str(images),
        label_fraction=(0.5,),
        epochs=1,
        width=16,
        protocols=("linear", "few"),
        device="cpu",
        workers=0,
        samples=0,
    )
    asked = replace(base, **changes)
    # options that none of the protocols reads
    if "few" not in asked.protocols:
        asked = replace(asked, label_fraction=(0.1,))
    if "attention" not in asked.protocols:
        asked = replace(asked, width=None)
    if set(asked.protocols) == {"knn"}:
        asked = replace(asked, epochs=None)
    return asked


def test_one_table_and_one_plot(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", image_tree, backbone_folder, "random:timm:test_resnet", image_size=32)
    result = compare(run)
    first, second = result.backbones
    assert (first.name, second.name) == run.backbones
    assert first.relative_speed == 1
    assert second.relative_speed > 0
    assert second.parameters == 372_688
    assert first.differences["linear"] == (0, 0)
    # the protocols are runs of `probe` that anybody can repeat
    alone = probe(
        ProbeConfig(
            out=tmp_path / "alone",
            backbone="random:timm:test_resnet",
            data=str(image_tree),
            head="linear",
            grid=True,
            normalise="standard",
            epochs=1,
            image_size=32,
            device="cpu",
            workers=0,
        )
    )
    assert alone.top1 == second.scores["linear"].value
    assert alone.ece == second.ece["linear"]
    # the effective rank, by hand
    train, place = load_data(str(image_tree)).train, second.place
    images = to_float(torch.stack([fit(train.image(row), 3, 32) for row in range(len(train))]))
    backbone = load_backbone("random:timm:test_resnet", image_size=32)
    extractor = FrozenExtractor(backbone, place[:1], place[1:])
    features = extractor(images, train.index)[place].mean((2, 3))
    shares = torch.linalg.svdvals(features.double())
    shares = shares / shares.sum() + 1e-7
    assert second.effective_rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-3)
    mirrored = extractor(images.flip(-1), train.index)[place].mean((2, 3))
    x, y = (torch.nn.functional.normalize(each.double()) for each in (features, mirrored))
    assert second.alignment == pytest.approx(float((x - y).square().sum(1).mean()), rel=1e-3)
    distances = torch.cdist(x, x).square()[~torch.eye(len(x), dtype=torch.bool)]
    assert second.uniformity == pytest.approx(float((-2 * distances).exp().mean().log()), abs=1e-4)
    # CKNNA of two representations, by hand
    assert first.cknna == pytest.approx(1)
    read = FrozenExtractor(load_backbone(first.name, image_size=32), first.place[:1], first.place[1:])
    theirs = read(images, train.index)[first.place].mean((2, 3))
    assert second.cknna == pytest.approx(_cknna(theirs, features), abs=1e-3)
    few = json.loads((run.out / "random%3Atimm%3Atest_resnet" / "few-0.5" / "metrics.json").read_text())
    assert few["train_images"] == 18
    assert few["top1"] == second.scores["few-0.5"].value
    assert len(list(csv.DictReader((run.out / "table.csv").open()))) == 4
    assert min(Image.open(run.out / "compare.png").size) > 200
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    titles = (
        "Calibration",
        "Effective rank",
        "CKNNA",
        "50 % of labels",
        "random:timm:test_resnet",
        "Difference from",
        "372,688",
        "15 test images",
        "({:.1f} to {:.1f})".format(*(100 * bound for bound in second.scores["linear"].interval)),
    )
    for words in titles:
        assert words in dom


def _cknna(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return CKNNA of ten neighbours, element by element (Huh et al., 2024)."""
    count, grams, near = len(first), [], []
    for vectors in (first.double(), second.double()):
        products = (vectors @ vectors.T).fill_diagonal_(0)
        rows = products.sum(1) / (count - 2)
        mean = products.sum() / ((count - 1) * (count - 2))
        grams.append((products - rows[:, None] - rows + mean).fill_diagonal_(0))
        unit = torch.nn.functional.normalize(vectors)
        ranked = (unit @ unit.T).fill_diagonal_(-2).argsort(1, descending=True)[:, :10]
        near.append([set(each) for each in ranked.tolist()])

    def shared(a: int, b: int) -> float:
        return sum(
            float(grams[a][i, j] * grams[b][i, j]) for i in range(count) for j in near[a][i] & near[b][i]
        )

    return shared(0, 1) / (shared(0, 0) * shared(1, 1)) ** 0.5


def test_what_generates_is_measured_in_one_feature_space(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    real = loading.load_backbone
    monkeypatch.setattr(loading, "load_backbone", lambda spec, **k: (loaded.append(spec), real(spec, **k))[1])
    untrained = f"random:{backbone_folder}"
    gan, trained = tmp_path / "bigan", bigan()
    gan.mkdir()
    trained.save(gan)
    run = config(
        tmp_path / "run",
        image_tree,
        backbone_folder,
        "pixels:3x16",
        untrained,
        gan,
        protocols=("knn",),
        samples=6,
        features="pixels:3x16",
    )
    first, pixels, noise, second = compare(run).backbones
    assert sorted(loaded) == sorted(run.backbones)  # each is read from its files once
    assert second.frechet
    assert second.parameters == sum(each.numel() for each in trained.network.parameters())
    assert pixels.frechet is None
    assert noise.frechet is None
    # the figures of the commands that are shown for it
    folder = tmp_path / "samples"
    generate(
        GenerateConfig(out=folder, n=6, backbone=str(backbone_folder), sampler="dpm-solver", device="cpu")
    )
    measured = fidelity(
        FidelityConfig(samples=folder, data=str(image_tree), features="pixels:3x16", limit=6, device="cpu")
    )
    assert first.frechet == measured.distances[0].frechet
    assert first.frechet > 0
    record = json.loads((run.out / "metrics.json").read_text())
    assert (record["feature_space"], record["samples"]) == (measured.space, 6)
    report = (run.out / "report.html").read_text()
    assert f"6 val images of {image_tree} in the features of {measured.space}" in report
    assert "generates none" in report


def test_going_on_repeats_nothing_and_may_add_backbones(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path / "run", image_tree, backbone_folder, protocols=("attention",))
    before = compare(run).backbones[0].scores
    trained = []
    import difflens.tasks.classification.probe as probing

    real = probing.fit
    monkeypatch.setattr(probing, "fit", lambda *a, **k: (trained.append(1), real(*a, **k))[1])
    after = compare(replace(run, backbones=(str(backbone_folder), "pixels:3x16"), resume=True))
    assert len(trained) == 1
    assert after.backbones[0].scores == before
    with pytest.raises(DiffLensError, match="already holds a run: choose another folder or add --resume"):
        compare(run)
    with pytest.raises(DiffLensError, match=r"backbones was \['.*', 'pixels:3x16'\], now"):
        compare(replace(run, resume=True))
    run = replace(run, backbones=(str(backbone_folder), "pixels:3x16"))
    with pytest.raises(DiffLensError, match="epochs was 1, now 2"):
        compare(replace(run, epochs=2, resume=True))


def test_several_seeds(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", image_tree, backbone_folder, seeds=2, protocols=("linear",))
    (only,) = compare(run).backbones
    metrics = json.loads(
        (run.out / next(run.out.glob("*/linear")).relative_to(run.out) / "metrics.json").read_text()
    )
    low, high = only.scores["linear"].interval
    assert only.scores["linear"].value == metrics["top1"]
    assert (high - low) / 2 == pytest.approx(metrics["top1_std"])
    assert "standard deviation" in (run.out / "report.html").read_text()


def test_the_command(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = shlex.split("--protocols knn --samples 0 --device cpu")
    words = ("--backbones", "pixels:3x16", "random:timm:test_vit", "--data", image_tree, *options)
    words = (*words, "--out", tmp_path / "x")
    assert cli("compare", *words) == 0
    printed = capsys.readouterr().out
    assert "random:timm:test_vit, k-NN:" in printed
    assert "0.3 M" in printed


def test_a_sweep_on_training_images_says_where_to_read(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    run = config(
        tmp_path / "run",
        image_tree,
        backbone_folder,
        protocols=("knn", "few"),
        sweep=30,
        label_fraction=(0.5, 0.75),
    )
    (only,) = compare(run).backbones
    folder = run.folder(str(backbone_folder))
    found = sweep(
        SweepConfig(
            out=tmp_path / "sweep",
            backbone=str(backbone_folder),
            data=str(image_tree),
            budget=("30",),
            device="cpu",
        )
    ).recommendation
    assert only.place == (found.block, found.noise_step)
    assert list(only.scores) == ["knn", "few-0.5", "few-0.75"]
    for key in only.scores:
        ran = yaml.safe_load((folder / key / "config.yaml").read_text())
        assert (ran["blocks"], ran["noise_steps"]) == ([found.block], [found.noise_step])
    assert "in a sweep over 30 training images" in (run.out / "report.html").read_text()
    beneath = {folder / name / "report.html" for name in ("sweep", *only.scores)}
    assert linked(run.out / "report.html") == {path.resolve() for path in beneath}


def test_each_image_is_read_once_whatever_the_order_of_protocols(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [], SharedFeatures.read

    def counted(self: SharedFeatures, *arguments: Any) -> FeatureCache:
        cache = original(self, *arguments)
        read.append(self._readings)
        return cache

    monkeypatch.setattr(SharedFeatures, "read", counted)
    protocols = ("few", "linear", "knn")
    run = config(
        tmp_path / "run", image_tree, backbone_folder, protocols=protocols, label_fraction=(0.5, 0.75)
    )
    (only,) = compare(run).backbones
    assert list(only.scores) == ["few-0.5", "few-0.75", "linear", "knn"]
    assert max(read) == 2  # the training and the test images
    assert not (run.folder(str(backbone_folder)) / "cache").exists()


def test_a_sweep_reads_no_more_images_than_the_probes(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "run", image_tree, backbone_folder, protocols=("knn",), sweep=30, limit=18)
    assert run.places(str(backbone_folder)).budget == ("18",)
    assert replace(run, limit=None).places(str(backbone_folder)).budget == ("30",)


def test_a_store_is_read_by_all_protocols(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import difflens.tasks.classification.probe as probing

    run = config(tmp_path / "run", image_tree, backbone_folder, protocols=("linear", "attention", "knn"))
    alone = compare(run).backbones[0]
    monkeypatch.setattr(probing, "read_features", None)
    (stored,) = compare(replace(run, out=tmp_path / "stored", store=True, token_side=4)).backbones
    assert stored.scores["knn"].value == pytest.approx(alone.scores["knn"].value, abs=2 / 15)
    assert set(stored.scores) == set(alone.scores)
    folder = tmp_path / "stored" / run.folder(str(backbone_folder)).name
    assert json.loads((folder / "store" / "manifest.json").read_text())["pool"] == 4
    assert yaml.safe_load((folder / "attention" / "config.yaml").read_text())["pool"] == 4


def test_a_store_keeps_whole_maps_where_pooling_twice_is_not_pooling_once(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    asked = {"protocols": ("knn", "attention"), "store": True, "token_side": 3}
    run = config(tmp_path / "run", image_tree, backbone_folder, **asked)
    assert set(compare(run).backbones[0].scores) == {"knn", "attention"}
    manifest = run.folder(str(backbone_folder)) / "store" / "manifest.json"
    assert json.loads(manifest.read_text())["pool"] == 0


def test_a_feature_space_that_is_not_there_is_found_out_first(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(DiffLensError, match="no backbone 'missing'"):
        compare(config(tmp_path / "run", image_tree, backbone_folder, samples=6, features="missing"))
    assert not (tmp_path / "run").exists()


def test_the_features_of_inception_measure_samples(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = tmp_path / "checkpoints" / INCEPTION_URL.rpartition("/")[2]
    weights.parent.mkdir()
    write_inception(weights)
    asked = {"protocols": ("knn",), "features": "inception", "image_size": 16}
    run = config(tmp_path / "run", image_tree, backbone_folder, **asked)
    with pytest.raises(DiffLensError, match="3 samples and 3 real images: precision"):
        compare(replace(run, samples=3))
    assert not run.out.exists()
    result = compare(replace(run, samples=4))
    assert result.feature_space == "Inception (FID)"
    assert result.backbones[0].frechet


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": ("pixels", "timm:coatnet_0_224")}, "No pretrained weights exist"),
        ({"backbones": ("pixels", "timm:resnet19")}, r"did you mean .*resnet18"),
        ({"backbones": ("pixels", "pixels")}, "pixels is named twice"),
        ({"backbones": ()}, "nothing to compare"),
        ({"label_fraction": (0.5, 0.01)}, "leaves no image of"),
        ({"label_fraction": (0.09,)}, r"9 % of labels holds out a fifth .* no class has two"),
        ({"seeds": 0}, "seeds is 0"),
        ({"samples": 1}, "at least two images"),
        ({"label_fraction": ()}, "at least one --label-fraction"),
        ({"label_fraction": (0.2, 0.3, 0.4, 0.5, 0.6)}, "at most 5"),
        ({"sweep": 1}, "sweep is 1"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so_before_anything_is_written(
    image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        compare(config(tmp_path / "run", image_tree, "pixels", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_former_command_goes_on(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config(tmp_path / "run", image_tree, "pixels:3x16", protocols=("knn",))
    before = compare(run)
    stored = run.out / "config.yaml"
    stored.write_text(stored.read_text().replace("command: compare", "command: rivals"))
    options = shlex.split("--protocols knn --samples 0 --device cpu --resume")
    words = ("--backbones", "pixels:3x16", "--data", image_tree, *options, "--out", run.out)
    assert cli("rivals", *words) == 0
    assert "`rivals` is now `compare`" in capsys.readouterr().err
    assert yaml.safe_load(stored.read_text())["command"] == "compare"
    after = json.loads((run.out / "metrics.json").read_text())
    assert after["backbones"][0]["accuracy"] == before.metrics()["backbones"][0]["accuracy"]
