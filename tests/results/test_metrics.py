"""Every result reads the metrics.json that it wrote, and that of version 0.1."""

import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from difflens import (
    CompareResult,
    DemoResult,
    DetectResult,
    ExtractResult,
    FidelityResult,
    GenerateResult,
    Mirrors,
    MultiLabelSeedResult,
    ProbeResult,
    ScenesResult,
    SegmentResult,
    SuggestResult,
    SweepResult,
)
from difflens.results.probe import read_seeds
from tests.helpers import made

FIXTURE = Path(__file__).parents[1] / "fixtures" / "version-0.1.tar.xz"

READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "suggest": lambda metrics: SuggestResult.from_metrics(metrics, made.OUT),
    "sweep": lambda metrics: SweepResult.from_metrics(metrics, made.OUT),
    "segment": lambda metrics: SegmentResult.from_metrics(metrics, made.OUT, None),
    "detect": lambda metrics: DetectResult.from_metrics(metrics, made.OUT, None),
    "extract": lambda metrics: ExtractResult.from_metrics(metrics, made.OUT),
    "generate": lambda metrics: GenerateResult.from_metrics(metrics, made.OUT),
    "fidelity": FidelityResult.from_metrics,
    "demo": lambda metrics: DemoResult.from_metrics(metrics, made.OUT),
    "scenes": lambda metrics: ScenesResult.from_metrics(metrics, made.OUT),
    "compare": lambda metrics: CompareResult.from_metrics(metrics, made.OUT),
    "probe": lambda metrics: ProbeResult(out=made.OUT, model=None, seeds=read_seeds(metrics), evaluations=()),
}


@pytest.fixture(scope="module")
def earlier() -> dict[str, dict[str, Any]]:
    """Return the JSON that version 0.1 wrote, by the path of its run."""
    found = {}
    with tarfile.open(FIXTURE) as archive:
        for member in archive:
            path = Path(member.name)
            file = archive.extractfile(member) if path.name in ("metrics.json", "scenes.json") else None
            if file is not None:
                found[path.parent.as_posix()] = json.load(file)
    return found


def as_json(result: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(result.metrics()))
    return values


@pytest.mark.parametrize("command", READERS)
def test_what_is_written_is_read_again(command: str) -> None:
    metrics = as_json(made.EVERY[command])
    assert as_json(READERS[command](metrics)) == metrics


def test_metrics_are_plain_values() -> None:
    for command, result in made.EVERY.items():
        if hasattr(result, "metrics"):
            assert as_json(result) == result.metrics(), command


@pytest.mark.parametrize(
    ("run", "command"),
    [
        ("probe", "probe"),
        ("attention", "probe"),
        ("seeds", "probe"),
        ("seeds/seed-0", "probe"),
        ("segment", "segment"),
        ("detect", "detect"),
        ("store", "extract"),
        ("generate", "generate"),
        ("fidelity", "fidelity"),
        ("scenes", "scenes"),
        ("rivals", "compare"),
    ],
)
def test_json_of_version_0_1_is_read_and_written_alike(
    earlier: dict[str, dict[str, Any]], run: str, command: str
) -> None:
    again = READERS[command](earlier[run]).metrics()
    for backbone in again["backbones"] if command == "compare" else ():
        assert backbone.pop("log_snr") is None
    assert again == earlier[run]
    assert list(again) == list(earlier[run])


def test_a_sweep_of_version_0_1_is_read_under_its_former_names(earlier: dict[str, dict[str, Any]]) -> None:
    stored = earlier["sweep"]
    result = SweepResult.from_metrics(stored, made.OUT)
    assert result.recommendation.cross_validated == stored["recommended"]["honest"] == 1
    assert list(result.recommendation.cross_validated_interval) == stored["recommended"]["honest_interval"]
    assert result.recommendation.fusion_cross_validated == stored["recommended"]["fusion_honest"]
    written = result.metrics()
    assert written.pop("log_snr") == [None] * len(stored["noise_steps"])
    assert {**written, "recommended": None} == {**stored, "recommended": None}
    assert [key.replace("cross_validated", "honest") for key in written["recommended"]] == list(
        stored["recommended"]
    )


def test_several_seeds_have_means_and_deviations() -> None:
    result = made.probed(made.seed(0), made.seed(1))
    assert result.top1 == pytest.approx(0.625)
    assert result.top1_std == pytest.approx(0.125 * 2**0.5)
    assert (result.top5, result.top5_std) == (1, 0)
    metrics = result.metrics()
    assert list(metrics) == [
        "top1",
        "top5",
        "mean_per_class",
        "top1_std",
        "top5_std",
        "mean_per_class_std",
        "metric",
        "test_images",
        "train_images",
        "trainable_parameters",
        "runs",
    ]
    assert metrics["runs"] == [made.seed(0).metrics(), made.seed(1).metrics()]
    assert read_seeds(metrics) == result.seeds
    one = made.probed()
    assert (one.top1, one.top1_std, one.mean_per_class_std) == (0.75, None, None)
    assert one.metrics() == made.seed().metrics()


def test_average_precisions_are_read_and_have_means() -> None:
    seeds = made.multi_label(), made.multi_label(1)
    assert MultiLabelSeedResult.from_metrics(as_json(seeds[0])) == seeds[0]
    result = made.probed(*seeds)
    assert (result.map, result.map_std) == (0.625, pytest.approx(0.125 * 2**0.5))
    metrics = as_json(result)
    assert metrics["runs"] == [as_json(seed) for seed in seeds]
    assert {key: metrics[key] for key in ("map", "metric", "test_images")} == {
        "map": 0.625,
        "metric": "map",
        "test_images": 4,
    }


def test_calibration_is_kept_and_may_be_missing() -> None:
    assert not {"ece", "nll"} & made.seed().metrics().keys()
    measured = made.probed(*(made.seed(k, ece=0.0625 * (k + 1), nll=0.5) for k in (0, 1)))
    assert (measured.ece, measured.nll) == (0.09375, 0.5)
    metrics = json.loads(json.dumps(measured.metrics()))
    assert (metrics["ece"], metrics["runs"][1]["ece"]) == (0.09375, 0.125)
    assert read_seeds(metrics) == measured.seeds
    mixed = made.probed(made.seed(0, **made.CALIBRATED), made.seed(1))
    assert (mixed.ece, mixed.nll) == (None, None)


def test_what_a_head_tried_is_kept_where_it_tried_something() -> None:
    assert not {"grid", "neighbours"} & made.seed().metrics().keys()
    tried = replace(made.seed(), grid=made.GRID, neighbours=made.NEIGHBOURS)
    metrics = json.loads(json.dumps(tried.metrics()))
    assert metrics["grid"][1] == {
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "validation_top1": 0.75,
        "chosen": True,
    }
    assert metrics["neighbours"][0] == {"k": 5, "validation_top1": 0.5, "chosen": False, "top1": 0.25}
    assert read_seeds(metrics) == (tried,)


def test_features_that_do_not_vary_are_null() -> None:
    unknown = math.nan, math.nan
    comparison, still = made.CKA.comparisons[0], torch.tensor([[1, math.nan], [math.nan, math.nan]])
    result = replace(
        made.CKA,
        comparisons=(replace(comparison, values=still, cknna=still),),
        geometry=(replace(made.CKA.geometry[0], rank=math.nan),),
        mirrors={5: Mirrors({0: unknown, 1: (0.25, 0.125)}, unknown, 4, 0, 0)},
    )
    metrics = json.loads(json.dumps(result.metrics(), allow_nan=False))
    assert metrics["cka"]["blocks-t5"] == metrics["cknna"]["blocks-t5"] == [[1, None], [None, None]]
    assert metrics["geometry"][0]["rank"] is None
    assert metrics["mirrors"]["5"]["lead_of_mirrors"] == [None, None]
    assert metrics["mirrors"]["5"]["cka_by_distance"] == {"0": [None, None], "1": [0.25, 0.125]}


def test_boxes_alone_have_no_masks() -> None:
    metrics = replace(made.DETECT, mask=None).metrics()
    assert not any(key.startswith("mask") for key in metrics)
    assert DetectResult.from_metrics(metrics, made.OUT, None).mask is None


def test_reference_distances_come_after_that_of_the_samples() -> None:
    assert made.FIDELITY.sample_distance.images == "samples"
    assert [each.images for each in made.FIDELITY.reference_distances] == ["train images"]
    assert FidelityResult.from_metrics(made.INCEPTION.metrics()) == made.INCEPTION


def test_predictions_are_records() -> None:
    assert made.CLASSES.records()[0] == {
        "image": "a.png",
        "label": "cat",
        "probability": 0.75,
        "probabilities": {"cat": 0.75, "dog": 0.25},
    }
    (mask,) = made.MASKS.records()
    assert list(mask) == ["image", "width", "height", "overlay", "mask", "classes", "values"]
    first, _ = made.OBJECTS.records()
    assert list(first) == ["image", "width", "height", "overlay", "objects"]
    assert first["objects"] == [
        {
            "label": "bar",
            "bbox": [1.0, 2.0, 3.5, 4.0],
            "score": 0.875,
            "segmentation": {"size": [24, 32], "counts": "abc"},
        },
        {"label": "disc", "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.5},
    ]
