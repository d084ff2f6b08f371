"""A dry run says what the command would do, and does nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from difflens import (
    CkaConfig,
    DetectConfig,
    DiffLensError,
    ExtractConfig,
    FidelityConfig,
    GenerateConfig,
    PretrainConfig,
    ProbeConfig,
    SegmentConfig,
    SweepConfig,
    detect,
    extract,
    fidelity,
    generate,
    plan,
    probe,
    segment,
    sweep,
)
from difflens.run.counting import cost_of_images, counting
from tests.helpers import every
from tests.helpers.cli import run
from tests.helpers.images import make_image_tree
from tests.helpers.networks import bigan


def config(backbone_folder: Path, tree: Path, out: Path) -> ProbeConfig:
    return ProbeConfig(
        backbone=str(backbone_folder), data=str(tree), out=out, blocks=(6,), noise_steps=(5,), batch_size=8
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "epochs": 2},
        {"head": "attention", "label_fraction": 0.5, "epochs": 1},
        {"head": "difformer", "noise_steps": (5, 9), "epochs": 1},
        {"head": "diffeed", "epochs": 1},
        {"head": "linear", "extractor": "finetuned", "epochs": 1, "limit": 9},
        {"head": "knn", "batch_size": None},
    ],
    ids=str,
)
def test_a_plan_of_probe_is_what_probe_does(
    changes: dict[str, object], backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    options = replace(config(backbone_folder, image_tree, tmp_path / "run"), **changes)
    planned = plan(options)
    assert not options.out.exists()
    probe(options)
    metrics = json.loads((options.out / "metrics.json").read_text())
    assert planned.images == {"train": metrics["train_images"], "test": metrics["test_images"]}
    if options.head == "knn":
        assert (planned.steps, planned.trainable_parameters) == (0, 0)
        return
    assert planned.trainable_parameters == metrics["trainable_parameters"]
    assert planned.steps == metrics["epochs"] * -(-metrics["train_images"] // min(8, metrics["train_images"]))


def test_a_plan_of_a_grid_counts_its_heads(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    plain = replace(config(backbone_folder, image_tree, tmp_path / "run"), head="linear", epochs=2)
    planned, alone = plan(replace(plain, grid=True)), plan(plain)
    steps: list[int] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    probe(replace(plain, grid=True))
    hook.remove()
    assert planned.steps == len(steps) > alone.steps
    assert planned.operations["grid"] == 15 * alone.operations["head"] * 30 / 36
    assert planned.gigabytes > alone.gigabytes


def test_a_plan_of_a_store_counts_the_images_in_it(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    places = {"backbone": str(backbone_folder), "data": str(image_tree), "blocks": (6,), "noise_steps": (5,)}
    extract(ExtractConfig(**places, out=tmp_path / "store", limit=24, seed=3, device="cpu", workers=0))
    options = ProbeConfig(store=tmp_path / "store", head="linear", label_fraction=0.5, out=tmp_path / "run")
    planned = plan(options)
    assert planned.images["train"] == probe(options).metrics()["train_images"] == 12


def test_a_plan_of_a_network_on_latents(image_tree: Path, tmp_path: Path) -> None:
    backbone = every.write("LDM", tmp_path)
    planned = plan(ProbeConfig(backbone=backbone.spec, data=str(image_tree), out=tmp_path / "run"))
    assert planned.images == {"train": 36, "test": 15}
    assert planned.hours > 0


def test_a_plan_of_sweep_is_what_sweep_does(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    """Twice the noise steps take twice the operations; a budget of time plans for all images at most."""
    options = SweepConfig(
        backbone=str(backbone_folder),
        data=str(image_tree),
        out=tmp_path / "run",
        blocks=(3, 6),
        budget=("30",),
    )
    planned = plan(replace(options, noise_steps=(5, 20)))
    done = sweep(replace(options, noise_steps=(5, 20), workers=0, device="cpu"))
    assert planned.images["train"] == done.images == 30
    assert planned.reads == "2 blocks at t = 5, 20"
    assert planned.hours == 2 * plan(replace(options, noise_steps=(5,))).hours
    timed = plan(replace(options, budget=("10m",)))
    assert timed.images == {"train": 36}
    assert timed.data.endswith("fewer images if 600 seconds end first")


def test_a_plan_of_pretrain_counts_activations_that_are_computed_again(
    image_tree: Path, tmp_path: Path
) -> None:
    options = PretrainConfig(data=str(image_tree), preset="photos-32", out=tmp_path / "run")
    plain, again = plan(options), plan(replace(options, checkpoint_activations=True))
    assert again.memory["a step"] < 0.8 * plain.memory["a step"]
    assert again.hours > 1.1 * plain.hours
    with pytest.raises(DiffLensError, match="is not a multiple of 3"):
        plan(replace(options, batch_size=64, accumulate=3))


@pytest.mark.parametrize("kind", [SegmentConfig, DetectConfig])
def test_a_plan_of_a_dense_task_has_the_parameters_of_its_mix(
    kind: type[SegmentConfig | DetectConfig], backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    extra: dict[str, Any] = {"head": "upernet"} if kind is SegmentConfig else {"proposals": 8}
    options = kind(
        data=scene_folder,
        backbone=str(backbone_folder),
        out=tmp_path / "run",
        side=32,
        blocks=(4, 6),
        noise_steps=(5, 20),
        width=16,
        iterations=1,
        batch_size=2,
        workers=0,
        **extra,
    )
    plain, mixed = plan(options), plan(replace(options, mix=True))
    assert mixed.trainable_parameters < plain.trainable_parameters
    command: Any = segment if kind is SegmentConfig else detect
    assert command(replace(options, mix=True)).trainable_parameters == mixed.trainable_parameters


def test_a_plan_of_a_dense_task_is_of_what_runs(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    boxes = tmp_path / "boxes"
    shutil.copytree(scene_folder, boxes)
    for file in (boxes / "annotations").glob("*.json"):
        record = json.loads(file.read_text())
        for each in record["annotations"]:
            del each["segmentation"]
        file.write_text(json.dumps(record))
    common: dict[str, Any] = {"backbone": str(backbone_folder), "out": tmp_path / "run", "side": 32}
    options = DetectConfig(data=boxes, proposals=8, iterations=1, batch_size=2, workers=0, **common)
    planned = plan(options)
    assert "faster-rcnn" in planned.reads
    assert planned.trainable_parameters == detect(options).trainable_parameters
    for wrong, message in (
        (replace(options, head="mask-rcnn"), "take --head faster-rcnn"),
        (replace(options, accumulate=3, batch_size=8), "batch-size 8 is not a multiple of 3"),
        (
            SegmentConfig(data=scene_folder, batch_size=1, head="upernet", **common),
            "give --batch-size 2 or more",
        ),
    ):
        with pytest.raises(DiffLensError, match=message):
            plan(wrong)


def test_a_plan_of_a_generator_in_one_pass(tmp_path: Path) -> None:
    bigan().save(tmp_path)
    planned = plan(GenerateConfig(backbone=str(tmp_path), n=4, out=tmp_path / "run"))
    assert planned.images == {"generated": 4}
    assert planned.hours > 0


def test_a_plan_of_fidelity_counts_what_fidelity_reads(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    made, flat = tmp_path / "samples", image_tree / "train" / "red"
    generate(GenerateConfig(backbone=str(backbone_folder), n=4, steps=2, out=made, device="cpu"))
    options = FidelityConfig(samples=made, data=str(flat), features=str(backbone_folder))
    assert plan(options).images == {"generated": 4, "real (test)": 12}
    assert fidelity(options).real_images == 12


def test_operations_of_a_layer() -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(30, 20, bias=False)

    def train(images: int) -> None:
        layer(torch.empty(images, 30, device="meta")).sum().backward()
        layer.zero_grad()

    # forward, and the gradient of the weights: 2 x 30 x 20 each; the input takes no gradient
    assert cost_of_images(train, 100).operations == 100 * 2 * (2 * 30 * 20)
    with counting() as cost, torch.no_grad():
        layer(torch.empty(5, 30, device="meta"))
    assert cost.peak == 4 * (5 * 30 + 5 * 20)


def test_no_command_writes(
    backbone_folder: Path, scene_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    out, backbone = tmp_path / "out", str(backbone_folder)
    dense = {"backbone": backbone, "data": scene_folder, "side": 32, "out": out}
    plans = [
        plan(each)
        for each in (
            SegmentConfig(**dense),
            DetectConfig(**dense),
            PretrainConfig(data=str(image_tree), preset="photos-32", out=out),
            SweepConfig(backbone=backbone, data=str(image_tree), budget=("30",), out=out),
            CkaConfig(backbone=backbone, data=str(image_tree), out=out),
            GenerateConfig(backbone=backbone, n=10, out=out),
            FidelityConfig(samples=tmp_path / "none", features=backbone, data=str(image_tree), out=out),
        )
    ]
    assert [each.images for each in plans] == [
        {"train": 12, "validation": 5},
        {"train": 12, "validation": 5},
        {"train": 36},
        {"train": 30},
        {"train": 36},
        {"generated": 10},
        {"generated": 50_000, "real (test)": 15},
    ]
    assert all(each.hours > 0 and each.gigabytes > 0 for each in plans)
    assert not out.exists()


def test_the_command_line(backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = make_image_tree(tmp_path / "images")
    words = ["probe", "--backbone", backbone_folder, "--data", tree, "--out", tmp_path / "run", "--dry-run"]
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "36 train, 15 test" in shown
    assert "an estimate: counted operations" in shown
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    options = ProbeConfig(out=tmp_path / "run", data="fashion")
    with pytest.raises(DiffLensError, match="downloads nothing, and someone/network is no file or folder"):
        plan(replace(options, backbone="someone/network"))
    with pytest.raises(DiffLensError, match="downloads nothing, and the size of hf:some/data"):
        plan(replace(options, data="hf:some/data"))
    with pytest.raises(DiffLensError, match="extract has no dry run"):
        plan(ExtractConfig(out=tmp_path / "run"))
    with pytest.raises(DiffLensError, match=r"dry_run is for `difflens\.plan`"):
        probe(replace(options, dry_run=True))
