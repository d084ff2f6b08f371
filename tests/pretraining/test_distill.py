"""Distillation at a tiny size: the loss falls, a stop changes nothing, all commands read the student."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from difflens import (
    CkaConfig,
    DiffLensError,
    DistillConfig,
    ExplainConfig,
    ExploreConfig,
    ExtractConfig,
    GenerateConfig,
    InfoConfig,
    MatchConfig,
    PredictConfig,
    ProbeConfig,
    SuggestConfig,
    SweepConfig,
    cka,
    distill,
    explain,
    explore,
    extract,
    generate,
    info,
    load_backbone,
    match,
    predict,
    probe,
    suggest,
    sweep,
)
from difflens.pretraining.methods.distillation import Adapter, Distillation
from tests.helpers import families
from tests.helpers.adm import Adm
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import curve
from tests.helpers.processes import run_two


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def distilled(backbone_folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """A finished run of 10 epochs of 36 images in 5 batches of 8."""
    run = DistillConfig(
        backbone=str(backbone_folder),
        data=str(images),
        out=tmp_path_factory.mktemp("distilled") / "run",
        epochs=10,
        batch_size=8,
        learning_rate=2e-3,
        checkpoint_minutes=0.0,
        device="cpu",
        workers=0,
    )
    distill(run)
    return run


@pytest.fixture
def student(distilled: DistillConfig) -> str:
    return str(distilled.out / "model")


def test_the_loss_falls(distilled: DistillConfig) -> None:
    losses = [loss for _, _, loss, _ in curve(distilled.out)]
    assert len(losses) == 10
    assert losses[-1] < 0.85 * losses[0]  # at much noise, the teacher's maps say little about an image


def test_an_adapter_begins_as_the_identity_and_knows_t() -> None:
    torch.manual_seed(0)
    adapter, maps, t = Adapter(6), torch.randn(2, 6, 3, 3), torch.tensor([0, 900])
    assert torch.equal(adapter(maps, t), maps)
    torch.nn.init.normal_(adapter.out.weight)
    same = adapter(maps[:1].expand(2, -1, -1, -1), t)
    assert not torch.allclose(same[0], same[1])


def test_the_student_maps_clean_images_to_the_teachers_maps(distilled: DistillConfig, student: str) -> None:
    """At little noise the student's own maps, without an adapter, are like the teacher's."""
    teacher, loaded = load_backbone(str(distilled.backbone)), load_backbone(student)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    for block in (5, 9):
        own, theirs = loaded.features(x, 0, [block])[block], teacher.features(x, 0, [block])[block]
        assert own.shape == theirs.shape
        assert not torch.allclose(own, theirs)
    # no noise, and no time but one
    assert loaded.process.bounds == (0, 0)
    assert torch.equal(loaded.add_noise(x, 0, torch.randn_like(x)), x)
    with pytest.raises(DiffLensError, match="noise step 20 is outside the schedule"):
        loaded.check_noise_steps([20])


def test_the_adapters_and_blocks_behind_the_last_are_left(distilled: DistillConfig, student: str) -> None:
    teacher, loaded = load_backbone(str(distilled.backbone)), load_backbone(student)
    assert loaded.state_dict().keys() == teacher.state_dict().keys()
    trained, still = loaded.state_dict()["unet.conv_in.weight"], loaded.state_dict()["unet.conv_out.weight"]
    before = teacher.state_dict()
    assert not torch.allclose(trained, before["unet.conv_in.weight"], atol=1e-3)
    assert torch.equal(still, before["unet.conv_out.weight"].half().float())


def test_probe_sweep_extract_and_info_read_it(
    distilled: DistillConfig, student: str, images: Path, tmp_path: Path
) -> None:
    common: dict[str, Any] = {
        "backbone": student,
        "data": str(images),
        "device": "cpu",
        "workers": 0,
    }
    result = probe(ProbeConfig(**common, out=tmp_path / "probe", head="linear", epochs=2, blocks=(6,)))
    assert result.seeds[0].test_images == 15
    swept = sweep(SweepConfig(**common, out=tmp_path / "sweep", blocks=(5, 6)))
    assert swept.noise_steps == (0,)
    extract(ExtractConfig(**common, out=tmp_path / "store", blocks=(6,), pool=2))
    assert (tmp_path / "store" / "manifest.json").is_file()
    described = info(InfoConfig(backbone=student))
    assert (described.noise, described.generates) == (None, False)
    assert "the network takes clean images" in described.summary()
    inside = load_backbone(f"{student}/unet")
    assert inside.fingerprint() == load_backbone(student).fingerprint()
    assert load_backbone(f"random:{student}").process.bounds == (0, 0)


def test_the_other_commands_read_it(student: str, images: Path, tmp_path: Path) -> None:
    pictures = tuple(sorted((images / "train" / "red").iterdir()))[:4]
    common: dict[str, Any] = {"device": "cpu", "workers": 0}
    place: dict[str, Any] = {"blocks": (5, 6), "epochs": 1, "width": 8}
    data: dict[str, Any] = {"data": str(images), "backbone": student}
    suggested = suggest(SuggestConfig(**common, **data, out=tmp_path / "suggested"))
    assert suggested.noise_steps == (0,)
    many = {**data, "data": str(make_image_tree(tmp_path / "many", per_class=27))}
    cka(CkaConfig(**common, **many, blocks=(5, 6), out=tmp_path / "cka"))
    run = ProbeConfig(**common, **data, **place, head="mix", out=tmp_path / "mix")
    probe(run)
    assert "block" in explain(ExplainConfig(run=run.out, out=tmp_path / "explained", device="cpu")).summary()
    for model in (run.out, tmp_path / "diffeed"):
        if model != run.out:
            probe(replace(run, head="diffeed", blocks=(5,), out=model))
        predicted = predict(PredictConfig(model=model, images=pictures, device="cpu"))
        assert len(predicted.predictions) == 4
    explore(ExploreConfig(images=pictures, backbone=student, out=tmp_path / "explored", device="cpu"))
    found = match(MatchConfig(pictures=pictures[:2], backbone=student, out=tmp_path / "match", device="cpu"))
    assert found.summary()


def test_images_that_are_held_out_teach_nothing(
    distilled: DistillConfig, images: Path, tmp_path: Path
) -> None:
    """36 images are 5 steps of 8, and 27 are 4."""
    steps = []
    for fraction in (None, 0.25):
        out = tmp_path / f"{fraction}"
        distill(replace(distilled, data=str(images / "train"), epochs=1, val_fraction=fraction, out=out))
        steps += [step for _, step, *_ in curve(out)]
    assert steps == [5, 4]


def test_the_card_names_the_teacher_as_code(distilled: DistillConfig, student: str) -> None:
    assert f"from `{distilled.backbone}`, without labels" in (Path(student) / "README.md").read_text()


def test_it_generates_nothing(student: str, tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="cannot generate: it was distilled to read clean images"):
        generate(GenerateConfig(backbone=student, n=1, out=tmp_path / "run", device="cpu"))
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_ends_as_an_uninterrupted_one(distilled: DistillConfig, tmp_path: Path) -> None:
    whole = replace(distilled, out=tmp_path / "whole", epochs=1, augment="flip")
    stopped = replace(whole, out=tmp_path / "stopped")
    first = distill(whole)
    distill(replace(stopped, max_minutes=1e-9))
    assert not (stopped.out / "log.jsonl").exists()
    second = distill(replace(stopped, resume=True))
    assert curve(whole.out) == curve(stopped.out)
    digests = [load_backbone(str(result.path)).fingerprint() for result in (first, second)]
    assert digests[0] == digests[1]
    assert first.last_loss == second.last_loss
    record = json.loads((first.path / "pretraining.json").read_text())
    assert record == {"images_seen": None}  # the teacher's folder does not say


def test_two_processes_give_the_same_loss_curve(distilled: DistillConfig, tmp_path: Path) -> None:
    run_two(
        "distill",
        *("--backbone", distilled.backbone, "--data", distilled.data, "--epochs", 10, "--batch-size", 8),
        *("--learning-rate", 2e-3, "--device", "cpu", "--out", tmp_path / "run"),
    )
    for mine, theirs in zip(curve(tmp_path / "run"), curve(distilled.out), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert load_backbone(str(tmp_path / "run" / "model")).process.bounds == (0, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("others")
    families.write_edm(root / "edm")
    families.write_unet(root / "classes", num_class_embeds=5)
    families.write_ldm(root / "ldm")
    torch.save(Adm(num_heads=4, head_channels=8).random_state(), root / "heads.pt")
    return root


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("pixels", "pixels:3x32 reads clean images already"),
        ("student", "reads clean images already: distill is for a diffusion network"),
        ("edm", "is for variance-preserving networks"),
        ("classes", "is for unconditional U-Nets that read pixels"),
        ("ldm", "is for unconditional U-Nets that read pixels"),
        ("heads.pt", "does not describe its layers or attention heads"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    distilled: DistillConfig, student: str, others: Path, tmp_path: Path, backbone: str, message: str
) -> None:
    spec = student if backbone == "student" else backbone
    spec = str(others / backbone) if (others / backbone).exists() else spec
    asked = replace(distilled, backbone=spec, out=tmp_path / "run")
    if backbone == "heads.pt":
        asked = replace(asked, num_heads=4, image_size=32)
    with pytest.raises(DiffLensError, match=message):
        distill(asked)
    assert not (tmp_path / "run").exists()


def test_the_student_keeps_the_side_that_it_was_trained_at(distilled: DistillConfig, tmp_path: Path) -> None:
    path = distill(replace(distilled, image_size=32, out=tmp_path / "run", epochs=1)).path
    assert load_backbone(distilled.backbone).image_size == 16
    assert load_backbone(str(path)).image_size == 32


def test_a_student_that_ran_out_of_time_says_so(distilled: DistillConfig, tmp_path: Path) -> None:
    summary = distill(replace(distilled, out=tmp_path / "run", max_minutes=1e-9)).summary()
    assert "Stopped after 0 of 10 epochs: the time was up. --resume continues" in summary


def test_damaged_folders_are_refused(student: str, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(student, folder)
    (folder / "distilled.json").write_text('{"time": -1, "difflens": "1"}')
    with pytest.raises(DiffLensError, match=r"distilled\.json: time is -1"):
        load_backbone(str(folder))
    (folder / "distilled.json").write_text('{"time": 0, "difflens": "1"}')
    (folder / "scheduler").mkdir()
    with pytest.raises(DiffLensError, match="a scheduler/, which belongs to another network"):
        load_backbone(str(folder))


def test_all_noise_steps_teach(distilled: DistillConfig, backbone_folder: Path, images: Path) -> None:
    from difflens.configs.options import resolve
    from difflens.data.load import load_unlabelled
    from difflens.run.processes import accelerator

    split = load_unlabelled(str(images))
    method = Distillation(resolve(distilled), split, accelerator("cpu"), load_backbone(str(backbone_folder)))
    drawn = []
    for epoch in range(40):
        method.start_epoch(epoch)
        drawn.append(method.t)
    steps = torch.cat(drawn)
    low, high = method.teacher.process.bounds
    assert int(steps.min()) < low + 0.02 * high
    assert int(steps.max()) > 0.98 * high
