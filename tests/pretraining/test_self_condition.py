"""Self-conditioned pre-training: it begins as the plain one, goes on, and every command reads the result."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difflens import (
    DiffLensError,
    DistillConfig,
    GenerateConfig,
    PretrainConfig,
    ProbeConfig,
    PushConfig,
    SweepConfig,
    TrainedModel,
    distill,
    generate,
    load_backbone,
    pretrain,
    probe,
    push,
    sweep,
)
from difflens.backbones.self_condition import SELF_CONDITION, SelfConditionedUNet2DModel
from difflens.backbones.unet import UNetBackbone
from difflens.configs.options import resolve
from difflens.data.load import load_unlabelled
from difflens.pretraining.methods.diffusion import DiffusionMethod
from difflens.run.processes import accelerator
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import checkpoint, config, curve
from tests.helpers.processes import run_two

pytestmark = pytest.mark.usefixtures("no_samples")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A run of two epochs of 36 images in 5 batches of 8 that nothing interrupts."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run = config(out, images, epochs=2, learning_rate=2e-3, augment="flip", self_condition=True)
    pretrain(run)
    return run


@pytest.fixture
def model(finished: PretrainConfig) -> Path:
    return finished.out / "model"


def method_of(run: PretrainConfig) -> DiffusionMethod:
    run = resolve(run)
    return DiffusionMethod(run, load_unlabelled(run.data), accelerator("cpu"))


def probed(model: Path, images: Path, out: Path, **options: Any) -> ProbeConfig:
    here: dict[str, Any] = {"head": "linear", "epochs": 1, "device": "cpu", "workers": 0, **options}
    return ProbeConfig(backbone=str(model), data=str(images), out=out, **here)


def test_the_first_step_has_the_plain_loss_and_trains_the_projection(
    finished: PretrainConfig, tmp_path: Path
) -> None:
    """One step an epoch: the logged loss of the first is that of fresh weights."""
    losses = []
    for own in (False, True):
        run = replace(
            finished, out=tmp_path / str(own), self_condition=own, batch_size=36, epochs=3, warmup_steps=0
        )
        pretrain(run)
        losses.append([loss for _, _, loss, _ in curve(run.out)])
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1]
    weights = checkpoint(tmp_path / "True")["unet"]
    assert weights["self_condition.weight"].abs().min() > 0
    assert {*weights} - {*checkpoint(tmp_path / "False")["unet"]} == {
        "self_condition.weight",
        "self_condition.bias",
    }


def test_the_saved_network_is_the_average_of_the_trained_one(finished: PretrainConfig, model: Path) -> None:
    method = method_of(finished)
    method.load_state(checkpoint(finished.out))
    expected, found = method.backbone(), load_backbone(str(model))
    assert isinstance(found, UNetBackbone)
    assert isinstance(found.unet, SelfConditionedUNet2DModel)
    assert found.fingerprint() == expected.fingerprint()
    x, last = torch.randn(2, 3, 16, 16), len(found.blocks)
    assert torch.equal(found.features(x, 20, [last])[last], expected.features(x, 20, [last])[last])
    assert torch.equal(found.denoise(x, 20), expected.denoise(x, 20))
    stored = load_file(model / "unet" / SELF_CONDITION)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    average = dict(zip((name for name, _ in method.unet.named_parameters()), method.ema, strict=True))
    assert torch.equal(stored["weight"], average["self_condition.weight"].half())
    assert stored["weight"].any()
    card = (model / "README.md").read_text()
    assert "library_name: difflens" in card
    assert f"diffusers alone would leave out `unet/{SELF_CONDITION}`" in card


def test_a_stopped_run_ends_as_an_uninterrupted_one(finished: PretrainConfig, tmp_path: Path) -> None:
    run = replace(finished, out=tmp_path / "run")
    pretrain(replace(run, max_minutes=1e-9))
    assert checkpoint(run.out)["step"] == 1
    pretrain(replace(run, resume=True))
    assert curve(run.out) == curve(finished.out)
    for part in ("unet", "optimizer", "ema"):
        torch.testing.assert_close(checkpoint(run.out)[part], checkpoint(finished.out)[part], atol=0, rtol=0)
    names = (f"unet/{SELF_CONDITION}", "unet/diffusion_pytorch_model.safetensors")
    for name in names:
        assert (run.out / "model" / name).read_bytes() == (finished.out / "model" / name).read_bytes()


def test_it_is_part_of_what_makes_a_run(finished: PretrainConfig) -> None:
    with pytest.raises(DiffLensError, match="self_condition was True, now False"):
        pretrain(replace(finished, self_condition=False, resume=True))


def test_two_processes_give_the_same_loss_curve(finished: PretrainConfig, tmp_path: Path) -> None:
    options = {
        "preset": "tiny",
        "data": finished.data,
        "epochs": 2,
        "batch-size": 8,
        "augment": "flip",
        "learning-rate": 2e-3,
        "accumulate": 2,
        "device": "cpu",
        "out": tmp_path / "run",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run_two("pretrain", *words, "--self-condition", "--precision", "float32")
    for mine, theirs in zip(curve(tmp_path / "run"), curve(finished.out), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert (tmp_path / "run/model/unet" / SELF_CONDITION).is_file()


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"checkpoint_activations": True}])
def test_other_arithmetic_gives_about_the_same_loss_curve(
    finished: PretrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    pretrain(replace(finished, out=tmp_path / "run", **changes))
    rel = 0.01 if "precision" in changes else 1e-4
    for mine, theirs in zip(curve(tmp_path / "run"), curve(finished.out), strict=True):
        assert mine == pytest.approx(theirs, rel=rel)
    weights = checkpoint(tmp_path / "run")["unet"].values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_a_plain_network_starts_a_self_conditioned_one(
    finished: PretrainConfig, model: Path, tmp_path: Path
) -> None:
    plain = replace(finished, out=tmp_path / "plain", epochs=1, self_condition=False)
    start = str(pretrain(plain).path)
    method = method_of(replace(finished, out=tmp_path / "run", init_from=start))
    saved = load_backbone(start)
    assert isinstance(saved, UNetBackbone)
    own = method.unet.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in saved.unet.state_dict().items())
    assert not own["self_condition.weight"].any()
    # a self-conditioned one goes on as such, with its projection
    stored = load_file(model / "unet" / SELF_CONDITION)["weight"].float()
    again = method_of(replace(finished, out=tmp_path / "run", init_from=str(model)))
    assert torch.equal(again.unet.state_dict()["self_condition.weight"], stored)
    # and never as a plain one
    with pytest.raises(DiffLensError, match="it is self-conditioned: add --self-condition"):
        pretrain(replace(plain, out=tmp_path / "run", init_from=str(model)))
    assert not (tmp_path / "run").exists()


def test_images_are_drawn_from_it(model: Path, tmp_path: Path) -> None:
    result = generate(GenerateConfig(backbone=str(model), n=2, steps=2, out=tmp_path / "drawn", device="cpu"))
    assert result.images == len([*(result.out / "images").glob("*.png")]) == 2


def test_a_sweep_and_a_probe_with_feedback_read_it(model: Path, images: Path, tmp_path: Path) -> None:
    swept = sweep(
        SweepConfig(
            backbone=str(model), data=str(images), out=tmp_path / "sweep", noise_steps=(5, 50),
            budget=("36",), device="cpu", workers=0,
        )
    )  # fmt: skip
    assert swept.metrics()
    options = {"head": "attention", "extractor": "feedback", "width": 16, "depth": 1}
    probe(probed(model, images, tmp_path / "probe", **options))
    first, again = (TrainedModel.load(tmp_path / "probe") for _ in range(2))
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(first.probabilities(pictures), again.probabilities(pictures))
    backbone = first.probe.extractor.backbone
    assert isinstance(backbone, UNetBackbone)
    torch.nn.init.zeros_(backbone.unet.self_condition.weight)
    assert not torch.equal(first.probabilities(pictures), again.probabilities(pictures))


def test_a_packed_model_carries_the_file(model: Path, images: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    trained = probe(probed(copy, images, tmp_path / "probe", blocks=(8,))).out
    result = push(PushConfig(model=trained, with_backbone=True, out=tmp_path / "packed"))
    assert f"backbone/unet/{SELF_CONDITION}" in result.files
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = TrainedModel.load(trained).probabilities(pictures)
    shutil.rmtree(copy)
    found = TrainedModel.load(tmp_path / "packed").probabilities(pictures)
    assert torch.equal(found, expected)
    (tmp_path / "packed" / "backbone/unet" / SELF_CONDITION).unlink()
    with pytest.raises(DiffLensError, match=f"there is no {SELF_CONDITION}"):
        TrainedModel.load(tmp_path / "packed")


def test_its_student_is_self_conditioned(model: Path, images: Path, tmp_path: Path) -> None:
    student = distill(
        DistillConfig(
            backbone=str(model), data=str(images), out=tmp_path / "student", epochs=1, batch_size=8,
            device="cpu", workers=0,
        )
    ).path  # fmt: skip
    assert (student / "unet" / SELF_CONDITION).is_file()
    backbone = load_backbone(str(student))
    assert isinstance(backbone, UNetBackbone)
    assert backbone.unet.self_condition.weight.any()
    assert json.loads((student / "unet/config.json").read_text())["_class_name"].startswith("SelfCond")


def test_a_dry_run_counts_the_projection(finished: PretrainConfig, tmp_path: Path) -> None:
    from difflens.studies.plan import plan

    counts = [
        plan(replace(finished, out=tmp_path / "x", self_condition=own)).trainable_parameters
        for own in (False, True)
    ]
    assert counts[1] - counts[0] == 32 * 64 + 64


def test_onnxruntime_gives_the_same_probabilities(model: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from difflens import ExportConfig, export

    trained = probe(probed(model, images, tmp_path / "probe", blocks=(8,))).out
    assert export(ExportConfig(model=trained, file=tmp_path / "model.onnx")).difference <= 1e-4
