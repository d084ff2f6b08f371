"""`sweep` end to end at a small size: its files, its budget, and the errors that it raises."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from difflens import (
    DiffLensError,
    FrozenExtractor,
    SweepConfig,
    SweepResult,
    load_backbone,
    load_data,
    sweep,
)
from difflens.configs.options import resolve
from difflens.data.split import every_nth
from difflens.extractors.cache import read_features
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.recommendation import comparable
from difflens.studies.halving import HalvingMeasurement
from difflens.studies.measurement import Measurement
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.html import Document
from tests.helpers.images import make_image_tree


def config(out: Path, backbone: Path, images: Path, /, **changes: object) -> SweepConfig:
    base = SweepConfig(
        out=out,
        backbone=str(backbone),
        data=str(images),
        noise_steps=(3, 40),
        blocks=(1, 5, 6),
        device="cpu",
        workers=0,
    )
    return replace(base, **changes)


def test_every_place_is_measured_and_shown(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    run = config(
        tmp_path / "run", backbone_folder, image_tree, classifiers=("ridge", "logistic", "knn"), blocks=None
    )
    result = sweep(run)
    assert result.blocks == tuple(range(1, 10))
    for name in ("ridge", "logistic", "knn"):
        assert result.accuracy[name].shape == (2, 9)
        assert float(result.accuracy[name].max()) > 0.8  # the colours are easy
    best = result.recommendation
    assert best.top1 == pytest.approx(float(result.accuracy["ridge"].max()))
    assert best.interval[0] < best.top1 <= best.interval[1]
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert metrics["images"] == 36
    assert metrics["validation_images"] == 6
    rows = list(csv.DictReader((run.out / "table.csv").open()))
    assert len(rows) == 3 * 2 * 9
    cell = next(r for r in rows if (r["classifier"], r["noise_step"], r["block"]) == ("ridge", "40", "5"))
    assert float(cell["accuracy"]) == pytest.approx(float(result.accuracy["ridge"][1, 4]), abs=1e-4)
    assert cell["part"] == "middle"
    assert min(Image.open(run.out / "heatmap.png").size) > 200
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    for heading in (
        "Recommended block and noise step",
        "Accuracy by block and noise step: ridge regression",
        "Table of accuracies",
        "Next commands",
        "Provenance",
    ):
        assert heading in dom
    assert f"--blocks {best.block} --noise-steps {best.noise_step}" in Document(dom).text


def test_the_next_commands_work(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert (
        cli(
            "sweep", "--backbone", backbone_folder, "--data", image_tree, "--noise-steps", 3, 40, "--out", out
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "Recommended: Block" in printed
    for number, command in enumerate(
        line.split() for line in printed.splitlines() if "difflens probe" in line
    ):
        words = [str(tmp_path / f"probe-{number}") if word == "DIR" else word for word in command[1:]]
        assert cli(*words, "--epochs", 1, "--width", 16, "--device", "cpu") == 0


def test_adding_noise_steps_measures_only_the_new_ones(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = Measurement._measure
    monkeypatch.setattr(
        Measurement,
        "_measure",
        lambda self, split, t: (measured.append(t), real(self, split, t))[1],
    )
    (image_tree / "train" / "red" / "bad.png").write_bytes(b"not an image")
    first = config(tmp_path / "run", backbone_folder, image_tree, on_bad_image="skip")
    before = sweep(first)
    assert len(before.skipped_images) == 1
    # nothing is read again, so the line is the kept one
    (first.out / "metrics.json").unlink()
    assert sweep(replace(first, resume=True)).skipped_images == before.skipped_images
    after = sweep(replace(first, noise_steps=(3, 20, 40), resume=True))
    assert measured == [3, 40, 20]
    assert torch.equal(after.accuracy["ridge"][[0, 2]], before.accuracy["ridge"])
    whole = sweep(replace(first, out=tmp_path / "whole", noise_steps=(3, 20, 40)))
    # the next commands have output folders of their own
    assert {**whole.metrics(), "next": ()} == {**after.metrics(), "next": ()}
    with pytest.raises(DiffLensError, match=r"noise_steps was \[3, 20, 40\], now \[3\]"):
        sweep(replace(first, noise_steps=(3,), resume=True))
    with pytest.raises(DiffLensError, match="pool was 2, now 1"):
        sweep(replace(first, noise_steps=(3, 20, 40), pool=1, resume=True))


def test_the_budget_bounds_images_and_time(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        sweep(config(tmp_path / "few", backbone_folder, image_tree, budget=("24",))).metrics()["images"] == 24
    )
    assert (
        sweep(config(tmp_path / "long", backbone_folder, image_tree, budget=("24", "1h"))).metrics()["images"]
        == 24
    )
    with pytest.raises(
        DiffLensError, match="allows 0 images, and 3 classes at 2 noise steps need at least 15"
    ):
        sweep(config(tmp_path / "none", backbone_folder, image_tree, budget=("0.0001s",)))
    assert not (tmp_path / "none").exists()
    # time runs out after the first noise step
    monkeypatch.setattr(Measurement, "_affordable", lambda self: 24)
    short = config(tmp_path / "short", backbone_folder, image_tree, budget=("0.0001s",))
    result = sweep(short)
    assert result.noise_steps == (3,)
    assert result.metrics()["not_measured"] == [40]
    assert "Not measured" in (short.out / "report.html").read_text()
    assert sweep(replace(short, budget=("1h",), resume=True)).noise_steps == (3, 40)


@pytest.mark.parametrize("budget", [("5000", "300"), ("5m", "1h")])
def test_a_budget_has_one_number_of_a_kind(budget: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"one number of images and one time, not '(300|1h)' besides"):
        resolve(SweepConfig(out=tmp_path / "x", budget=budget))


def test_small_classes_are_judged_and_single_images_named(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    for number in range(3, 12):
        (image_tree / "train" / "red" / f"{number}.png").unlink()
    for number in range(1, 12):
        (image_tree / "train" / "blue" / f"{number}.png").unlink()
    lines: list[str] = []
    metrics = sweep(config(tmp_path / "run", backbone_folder, image_tree), lines.append).metrics()
    assert metrics["validation_images"] == 2 + 1
    assert any(line.startswith("16 training images, 3 of them for validation; ") for line in lines)
    assert "Classes with a single image are trained on but not validated: blue" in lines
    sweep(config(tmp_path / "run", backbone_folder, image_tree, budget=("16",), resume=True), lines.append)
    assert "The sweep goes on with the 16 images that it began with" not in lines
    sweep(config(tmp_path / "run", backbone_folder, image_tree, budget=("15",), resume=True), lines.append)
    assert "The sweep goes on with the 16 images that it began with" in lines


def test_a_normalised_sweep_scores_features_that_are_normalised_beforehand(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    """Whitened by hand, the features of a place give k-NN and ridge the same accuracy."""
    run = config(
        tmp_path / "run", backbone_folder, image_tree, classifiers=("knn", "ridge"), noise_steps=(40,)
    )
    run = replace(run, blocks=(6,), normalise="whiten")
    result = sweep(run)
    data = load_data(str(image_tree))
    extractor = FrozenExtractor(load_backbone(str(backbone_folder)), (6,), (40,))
    cache = read_features(extractor, 2, data.train, Accelerator(cpu=True))
    maps = cache.maps[6, 40].float()
    held_out = every_nth(cache.labels, 5)
    channels = maps[~held_out].movedim(1, -1).flatten(0, 2).double()
    covariance = channels.T.cov(correction=0)
    values, vectors = torch.linalg.eigh(covariance + 1e-3 * covariance.trace() / 16 * torch.eye(16))
    matrix = vectors @ torch.diag(values**-0.5) @ vectors.T
    centred = maps.double() - channels.mean(0)[:, None, None]
    features = torch.einsum("dc,nchw->ndhw", matrix, centred).flatten(1).float()
    for name in ("knn", "ridge"):
        choosing = every_nth(cache.labels[~held_out], 5)
        scores = held_out_scores(name, features, cache.labels, held_out, choosing, 3)
        expected = (scores.argmax(1) == cache.labels[held_out]).double().mean()
        assert float(result.accuracy[name]) == pytest.approx(float(expected))
    scores = comparable(held_out_scores("knn", features, cache.labels, held_out, choosing, 3))
    (step,) = (run.out / "steps").glob("*.safetensors")
    found = load_file(step)["scores"][0]
    torch.testing.assert_close(found.float(), scores, rtol=1e-2, atol=1e-2)


def test_whitening_needs_images(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", backbone_folder, image_tree, normalise="whiten", budget=("18",))
    with pytest.raises(DiffLensError, match="needs at least 16 training images, not 15"):
        sweep(run)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def halved(out: Path, backbone: Path, tmp_path: Path) -> SweepConfig:
    images = tmp_path / "many"
    if not images.exists():
        make_image_tree(images, per_class=60)
    return config(out, backbone, images, halve=True, budget=("60",), blocks=None)


def test_a_sweep_that_halves_reads_more_images_at_the_better_places(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, float, int]] = []
    real = Measurement.read
    monkeypatch.setattr(
        Measurement,
        "read",
        lambda self, split, t, blocks: (
            passes.append((len(split), t, len(blocks))),
            real(self, split, t, blocks),
        )[1],
    )
    run = halved(tmp_path / "run", backbone_folder, tmp_path)
    lines: list[str] = []
    result = sweep(run, lines.append)
    assert passes[:2] == [(15, 3, 9), (15, 40, 9)]
    assert sum(images for images, *_ in passes) <= 60 * 2
    assert any(line.startswith("18 places on 15 images: best block ") for line in lines)
    assert any(line.startswith("9 places on 30 images: best block ") for line in lines)
    counts = result.images_by_place
    assert counts is not None
    assert counts.unique().tolist() == [15, 30, 60]
    assert [int((counts >= images).sum()) for images in (15, 30, 60)] == [18, 9, 5]
    best = result.recommendation
    place = (result.noise_steps.index(best.noise_step), result.blocks.index(best.block))
    assert counts[place] == result.images == 60
    assert result.validation_images == 15  # half of the images that the last rung read first
    assert best.top1 == pytest.approx(float(result.accuracy["ridge"][place]))
    assert SweepResult.from_metrics(result.metrics(), run.out).metrics() == result.metrics()
    rows = list(csv.DictReader((run.out / "table.csv").open()))
    assert [int(row["images"]) for row in rows] == counts.flatten().tolist()
    assert [bool(row["low_95"]) for row in rows] == (counts.flatten() == 60).tolist()
    (best_row,) = [
        row for row in rows if (row["block"], row["noise_step"]) == (str(best.block), str(best.noise_step))
    ]
    assert float(best_row["low_95"]) <= best.top1 <= float(best_row["high_95"])
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    assert "Table of images" in dom
    assert not (run.out / "cache").exists()


def test_a_budget_that_cannot_be_halved_says_so(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(halved(tmp_path / "run", backbone_folder, tmp_path), noise_steps=(20,), blocks=(6,))
    sweep(run)
    assert "nothing may be halved" not in capsys.readouterr().err
    sweep(replace(run, out=tmp_path / "small", budget=("20",)))
    assert "15 here, and the budget of 20 images pays for no second round" in capsys.readouterr().err


def test_a_stopped_sweep_that_halves_ends_with_the_same_files(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = halved(tmp_path / "whole", backbone_folder, tmp_path)
    sweep(whole)
    expected = files(whole.out)
    sweep(replace(whole, resume=True))
    assert files(whole.out) == expected
    real = HalvingMeasurement.judge
    for stop in range(len(list(whole.out.glob("rungs/*")))):
        run = replace(whole, out=tmp_path / f"stopped-{stop}")
        judged: list[float] = []

        def judge(
            self: Any, cache: Any, t: float, held_out: Any, stop: int = stop, judged: Any = judged
        ) -> Any:
            judged.append(t)
            if len(judged) > stop:
                raise KeyboardInterrupt
            return real(self, cache, t, held_out)

        monkeypatch.setattr(HalvingMeasurement, "judge", judge)
        with pytest.raises(KeyboardInterrupt):
            sweep(run)
        monkeypatch.setattr(HalvingMeasurement, "judge", real)
        sweep(replace(run, resume=True))
        found = files(run.out)
        assert found.keys() == expected.keys()
        different = {name for name in expected if found[name] != expected[name]}
        assert different <= {"config.yaml", "report.html", "metrics.json"}  # these name the folder
        assert found["table.csv"] == expected["table.csv"]
        metrics, wanted = (json.loads(each["metrics.json"]) for each in (found, expected))
        assert {**metrics, "next": None} == {**wanted, "next": None}


def test_noise_steps_are_not_added_to_a_sweep_that_halves(backbone_folder: Path, tmp_path: Path) -> None:
    run = halved(tmp_path / "run", backbone_folder, tmp_path)
    sweep(run)
    with pytest.raises(DiffLensError, match=r"noise_steps was \[3, 40\], now \[3, 20, 40\]"):
        sweep(replace(run, noise_steps=(3, 20, 40), resume=True))
    with pytest.raises(DiffLensError, match="halve was True, now False"):
        sweep(replace(run, halve=False, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": ("many",)}, "takes a number of images or a time such as 90s, 10m or 1h, not 'many'"),
        ({"budget": ("-5",)}, "not '-5'"),
        ({"budget": ("infs",)}, "not 'infs'"),
        ({"blocks": (10,)}, "no block 10"),
        ({"noise_steps": (100,)}, "noise step 100 is outside"),
        ({"classifiers": ()}, "there is no classifier"),
        ({"pool": 0}, "pool is 0"),
        ({"normalise": "standard"}, "leave out --normalise"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        sweep(config(tmp_path / "run", backbone_folder, image_tree, **changes))
    assert not (tmp_path / "run").exists()
