"""Runs, stores and models that version 0.1 wrote are read, and its stopped runs go on to the same end."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import difflens
from difflens import (
    CompareConfig,
    DetectionModel,
    ExtractConfig,
    FeatureStore,
    GenerateConfig,
    PretrainConfig,
    ProbeConfig,
    ReportConfig,
    SegmentationModel,
    SegmentConfig,
    SweepConfig,
    TrainedModel,
    compare,
    load_backbone,
)
from difflens.data.dense import samples

ARCHIVE = Path(__file__).parent / "fixtures" / "version-0.1.tar.xz"
BACKBONE = "pretrain/model"
HERE: dict[str, Any] = {"device": "cpu", "workers": 0}
COMMON: dict[str, Any] = {"backbone": BACKBONE, "data": "data", **HERE}
# figures that version 0.1 did not measure
LATER = ("log_snr", "ece", "nll", "effective_rank", "alignment", "uniformity")
TIMES = ("train_seconds", "images_per_second", "seconds", "relative_speed")

PRETRAIN: dict[str, Any] = {
    "data": "data",
    "preset": "tiny",
    "image_size": 16,
    "epochs": 3,
    "batch_size": 8,
    "warmup_steps": 2,
    **HERE,
}
FINETUNED: dict[str, Any] = {
    "head": "difformer",
    "extractor": "finetuned",
    "blocks": (6, 8),
    "noise_steps": (20, 50),
    "from_block": 7,
    "width": 16,
    "depth": 1,
    "epochs": 3,
    "batch_size": 8,
    "layer_decay": 0.5,
    "augment": "flip",
    **COMMON,
}
ATTENTION: dict[str, Any] = {
    "head": "attention",
    "width": 16,
    "depth": 1,
    "epochs": 4,
    "batch_size": 8,
    "dropout": 0.1,
    "mixup": 0.5,
    **COMMON,
}
SEGMENT: dict[str, Any] = {
    "data": Path("scenes"),
    "backbone": BACKBONE,
    "iterations": 6,
    "batch_size": 2,
    "head": "linear",
    "side": 32,
    **HERE,
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version-0.1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads of the runs of version 0.1, on which last bits depend."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def earlier(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory holds everything that version 0.1 wrote, as if written there.

    A trained model names its backbone by the absolute path.
    """
    shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("**/model/config.json"):
        config = json.loads(path.read_text())
        if "backbone" in config and Path(config["backbone"]["spec"]).is_absolute():
            config["backbone"]["spec"] = str(tmp_path / BACKBONE)
            path.write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)


def timeless(value: Any) -> Any:
    """Without the times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def today(value: Any) -> Any:
    """With the names of today, without figures of today; commands may name their options in any order."""
    if isinstance(value, dict):
        names = {key: key.replace("honest", "cross_validated") for key in value if key not in LATER}
        return {name: today(value[key]) for key, name in names.items()}
    if isinstance(value, str) and value.startswith("difflens "):
        return sorted(value.split())
    return [today(each) for each in value] if isinstance(value, list) else value


def close(value: Any) -> Any:
    """Equal but for the last bits of numbers, which differ between kinds of processors."""
    if isinstance(value, dict):
        return {key: close(each) for key, each in value.items()}
    if isinstance(value, list):
        return [close(each) for each in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def metrics(run: str) -> dict[str, Any]:
    return dict(today(json.loads((Path(run) / "metrics.json").read_text())))


def log(run: str) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def images(side: int = 16) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("run", ["probe", "attention", "finetuned", "diffeed", "seeds"])
def test_a_classifier_is_loaded(run: str) -> None:
    model = TrainedModel.load(Path(run))
    probabilities = model.probabilities(images())
    assert model.classes == ("dark", "light")
    assert probabilities.shape == (2, 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_a_model_of_segmentation_is_loaded() -> None:
    model = SegmentationModel.load(Path("segment"))
    with torch.no_grad():
        logits = model.probe(images(32), torch.arange(2), 0, size=(32, 32))
    assert len(model.classes) == 11
    assert logits.shape == (2, 11, 32, 32)
    assert logits.isfinite().all()


def test_a_model_of_detection_is_loaded() -> None:
    model = DetectionModel.load(Path("detect"), backbone=BACKBONE)
    with torch.no_grad():
        maps = model.probe.extractor(images(32), torch.arange(2))
        objects = model.probe(images(32), torch.arange(2), 0)
    assert len(model.classes) == 10
    assert all(map.isfinite().all() for map in maps.values())
    assert len(objects) == 2
    assert all(found["boxes"].isfinite().all() for found in objects)


@pytest.mark.parametrize(("spec", "step"), [("pretrain/model", 20), ("supervised/model", 0)])
def test_a_backbone_is_loaded(spec: str, step: int) -> None:
    backbone = load_backbone(spec)
    block = backbone.defaults.block
    with torch.no_grad():
        (maps,) = backbone.features(images(), step, (block,)).values()
    assert maps.shape[:2] == (2, backbone.block(block).channels)
    assert maps.isfinite().all()


def test_a_store_is_opened_and_a_head_trained_on_it() -> None:
    store = FeatureStore("store")
    assert store.maps("train", 6, 20).shape == (16, 32, 2, 2)
    assert store.labels("test").tolist() == [0] * 4 + [1] * 4
    places: dict[str, Any] = {"blocks": (6,), "noise_steps": (20,), "pool": 2}
    difflens.probe(
        ProbeConfig(
            out=Path("on-store"),
            store=Path("store"),
            head="linear",
            epochs=2,
            batch_size=8,
            **places,
            **{**COMMON, "workers": None},
        )
    )
    difflens.probe(ProbeConfig(out=Path("read"), head="linear", epochs=2, batch_size=8, **places, **COMMON))
    assert metrics("on-store")["top1"] == metrics("read")["top1"]


def test_pretraining_goes_on() -> None:
    difflens.pretrain(PretrainConfig(out=Path("pretrain-stopped"), resume=True, **PRETRAIN))
    assert log("pretrain-stopped") == close(log("pretrain"))
    again, before = (
        dict(load_backbone(f"{run}/model").state_dict()) for run in ("pretrain-stopped", "pretrain")
    )
    assert again.keys() == before.keys()
    for name, weights in again.items():  # sums differ in their last bits between processors
        torch.testing.assert_close(weights, before[name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("run", "recipe"), [("finetuned", FINETUNED), ("attention", ATTENTION)])
def test_a_probe_goes_on(run: str, recipe: dict[str, Any]) -> None:
    difflens.probe(ProbeConfig(out=Path(f"{run}-stopped"), resume=True, **recipe))
    assert log(f"{run}-stopped") == close(log(run))
    assert timeless(metrics(f"{run}-stopped")) == close(timeless(metrics(run)))


def test_a_segmentation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks resized as then, by the value at the upper left corner of each new pixel."""

    def by_corner(masks: torch.Tensor, size: list[int]) -> torch.Tensor:
        for dim, length in zip((-2, -1), size, strict=True):
            masks = masks.index_select(dim, torch.arange(length) * masks.shape[dim] // length)
        return masks

    monkeypatch.setattr(samples, "_nearest", by_corner)
    difflens.segment(SegmentConfig(out=Path("segment-stopped"), resume=True, **SEGMENT))
    assert log("segment-stopped") == close(log("segment"))
    again = timeless(metrics("segment-stopped"))
    assert "Sandal" in again.pop("absent_classes")
    assert again == close(timeless(metrics("segment")))


@pytest.mark.parametrize("run", ["probe", "seeds", "sweep", "generate", "store"])
def test_a_finished_run_is_taken_as_it_is(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics, times included, stay what they were, and no image goes through the network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network is run")

    monkeypatch.setattr(nn.Conv2d, "forward", refuse)
    before, common = metrics(run), {"out": Path(run), "resume": True}
    if run == "probe":
        options = {"normalise": "none", **common}  # the default then
        difflens.probe(ProbeConfig(head="linear", epochs=2, batch_size=8, **options, **COMMON))
    elif run == "seeds":
        difflens.probe(ProbeConfig(head="knn", seeds=2, normalise="none", **common, **COMMON))
    elif run == "sweep":
        difflens.sweep(SweepConfig(blocks=(6, 8), noise_steps=(20,), **common, **COMMON))
    elif run == "generate":
        difflens.generate(
            GenerateConfig(n=4, steps=2, batch_size=4, backbone=BACKBONE, device="cpu", **common)
        )
    else:
        difflens.extract(ExtractConfig(blocks=(6, 8), noise_steps=(20,), pool=2, **common, **COMMON))
    again = metrics(run)
    for found in (again, before):
        found.pop("next", None)  # the commands that a sweep prints now name folders of their own
    assert again == before


def test_a_finished_comparison_is_taken_as_it_is() -> None:
    """Only the speeds are measured again: its runs, times included, stay what they were."""
    before = timeless(metrics("rivals"))
    runs = {path: path.read_text() for path in Path("rivals").glob("*/knn/metrics.json")}
    backbones = (BACKBONE, "pixels:1x16")
    compare(
        CompareConfig(
            out=Path("rivals"),
            backbones=backbones,
            data="data",
            protocols=("knn",),
            samples=0,
            normalise="none",  # the default then
            resume=True,
            **HERE,
        )
    )
    again = timeless(metrics("rivals"))
    for backbone in again["backbones"]:
        assert backbone.pop("cknna") <= 1 + 1e-9  # a measure of later versions
    assert again == before
    assert len(runs) == 2
    assert all(path.read_text() == text for path, text in runs.items())


def test_a_report_reads_the_runs() -> None:
    runs = ("pretrain", "probe", "generate", "fidelity")
    difflens.report(ReportConfig(runs=runs, out=Path("report.html"), samples=4, **HERE))
    page = Path("report.html").read_text()
    assert all(name in page for name in runs)
    assert "0.055" in page  # the Fréchet distance
