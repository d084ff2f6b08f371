"""Every method of pre-training besides diffusion at a tiny size, end to end."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from difflens import DiffLensError, PretrainConfig, ProbeConfig, load_backbone, presets, pretrain, probe
from difflens.configs import options
from difflens.configs.options import resolve
from difflens.data.loader import Batch
from difflens.data.split import MemorySplit
from difflens.pretraining.methods.mae import MASKED, MAEMethod
from difflens.pretraining.methods.make import make_method
from difflens.pretraining.methods.simclr import SimCLRMethod
from difflens.run.processes import accelerator
from tests.helpers.pretraining import checkpoint, config, curve
from tests.helpers.processes import run_two

METHODS = tuple(presets.METHODS)


def method_of(method: Any, **options: Any) -> Any:
    config = resolve(
        PretrainConfig(data="", out=Path(), method=method, preset="tiny", epochs=100, device="cpu", **options)
    )
    torch.manual_seed(0)
    images = MemorySplit("train", torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    return make_method(config, images, accelerator("cpu"))


def batch(index: list[int]) -> Batch:
    """Images that their index determines."""
    images = [
        torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(k))
        for k in index
    ]
    return Batch(torch.stack(images), None, torch.tensor(index), torch.tensor(index))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_backbone_that_is_probed(method: Any, image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", image_tree, method=method, epochs=2, augment="flip")
    folder = pretrain(run).path
    backbone = load_backbone(str(folder))
    assert (backbone.in_channels, backbone.image_size) == (3, 16)
    assert backbone.generates == (method == "bigan") == (folder / "samples.png").exists()
    card = (folder / "README.md").read_text()
    # 36 images fill five batches of 8
    for fact in ("| images | 36 |", "| images seen | 80 |", "| epochs | 2 of 2 |", f"--method {method}"):
        assert fact in card, fact
    encoder, trained = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:of the encoder|trained)", card)
    )
    assert encoder == sum(p.numel() for p in backbone.network.parameters()) < trained
    assert re.search(r"\| minutes of training \| \d+\.\d \|", card)
    probed = ProbeConfig(
        out=tmp_path / "probe",
        backbone=str(folder),
        data=str(image_tree),
        head="linear",
        epochs=1,
        device="cpu",
    )
    assert probe(probed).metrics()["test_images"] == 15


@pytest.mark.parametrize("method", ["simclr", "mae", "supervised"])
def test_the_loss_falls(method: Any, image_tree: Path, tmp_path: Path) -> None:
    pretrain(config(tmp_path / "run", image_tree, method=method, epochs=15, learning_rate=3e-3))
    losses = [loss for _, _, loss, _ in curve(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_as_an_uninterrupted_one(method: Any, image_tree: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch."""
    whole = config(tmp_path / "whole", image_tree, method=method, epochs=2, augment="flip")
    stopped = replace(whole, out=tmp_path / "stopped")
    folders = [pretrain(whole).path]
    pretrain(replace(stopped, max_minutes=1e-9))
    assert checkpoint(stopped.out)["step"] == 1
    folders.append(pretrain(replace(stopped, resume=True)).path)
    uninterrupted, resumed = (load_file(folder / "model.safetensors") for folder in folders)
    assert uninterrupted.keys() == resumed.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(value, resumed[name]), name
    assert curve(whole.out) == curve(stopped.out)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_explodes_stops_the_run(
    method: Any, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate beyond the range of the option: BiGAN's losses stay finite within it."""
    for name in ("check_values", "validate"):
        monkeypatch.setattr(options, name, lambda config: None)
    run = config(tmp_path / "run", image_tree, method=method, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DiffLensError, match=r"no longer finite in epoch \d+ \(step \d+\)"):
        pretrain(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "gan"},
            r"no method 'gan'; did you mean bigan\? there are diffusion, bigan, simclr, mae, supervised",
        ),
        (
            {"method": "bigan", "prediction": "epsilon"},
            "bigan does not read options of diffusion: leave out --prediction",
        ),
        (
            {"method": "mae", "accumulate": 2, "compile": True},
            "mae does not read options of diffusion: leave out --accumulate, --compile",
        ),
        (
            {"method": "simclr", "ema_decay": 0.9},
            "simclr does not read options of diffusion: leave out --ema-decay",
        ),
        ({"method": "supervised", "preset": "rgb-64"}, "the presets tiny, fashion-small, fashion-32"),
        ({"method": "bigan", "batch_size": 1}, "batch-size must be at least 2, two for each process"),
        ({"method": "bigan", "image_size": 20}, "image-size 20 must be a multiple of 8"),
    ],
)
def test_what_cannot_be_trained_writes_nothing(
    image_tree: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        pretrain(config(tmp_path / "run", image_tree, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["simclr", "mae", "supervised"])
def test_without_timm(method: Any, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"difflens.pretraining.methods.{method}", raising=False)
    for name in [*sys.modules, "timm"]:
        if name.partition(".")[0] == "timm":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DiffLensError, match=r'needs? timm: pip install "difflens\[compare\]"'):
        pretrain(config(tmp_path / "run", image_tree, method=method))
    assert not (tmp_path / "run").exists()


def test_supervised_training_reads_no_test_image(image_tree: Path, tmp_path: Path) -> None:
    tests = list((image_tree / "val").rglob("*.png"))
    for path in tests:
        path.write_bytes(b"not an image")
    assert len(tests) == 15
    pretrain(config(tmp_path / "run", image_tree, method="supervised", epochs=1))


def test_only_supervised_training_needs_labels(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(folder / f"{number}.png")
    pretrain(config(tmp_path / "run", folder, method="mae", epochs=1))
    with pytest.raises(DiffLensError):
        pretrain(config(tmp_path / "other", folder, method="supervised", epochs=1))
    assert not (tmp_path / "other").exists()


def test_views_belong_to_an_image_and_an_epoch() -> None:
    mine = method_of("simclr", augment="flip")
    assert isinstance(mine, SimCLRMethod)
    before = torch.get_rng_state()

    def views(index: list[int]) -> tuple[Tensor, Tensor]:
        first, second = mine._views(batch(index)).chunk(2)
        return first, second

    first, second = views([0, 1, 2])
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (3, 3, 16, 16)
    assert -1 <= first.min() < first.max() <= 1
    assert not torch.equal(first, second)
    for mine_, theirs in zip((first, second), views([2, 1]), strict=True):
        assert torch.equal(mine_[1:].flip(0), theirs)
    mine.start_epoch(1)
    assert not torch.equal(views([0, 1, 2])[0], first)


def test_masks_belong_to_an_image_and_an_epoch() -> None:
    mine = method_of("mae")
    assert isinstance(mine, MAEMethod)
    visible, masked = mine._split(torch.tensor([4, 5, 6]))
    assert (visible.shape, masked.shape) == ((3, 1 + 4), (3, 12))
    assert masked.shape[1] == MASKED * 16
    for each in torch.cat([visible, masked], 1):
        assert sorted(each.tolist()) == [*range(17)]
    assert visible[:, 0].tolist() == [0, 0, 0]
    assert not torch.equal(masked[0], masked[1])
    assert torch.equal(mine._split(torch.tensor([6, 4]))[1], masked[[2, 0]])
    mine.start_epoch(1)
    assert not torch.equal(mine._split(torch.tensor([4, 5, 6]))[1], masked)


def test_the_masked_loss_is_of_normalised_masked_patches() -> None:
    """A predictor that says 0 leaves the mean square of the targets: 47/48 v / (v + 1e-6) of a patch's
    variance v."""
    mine = method_of("mae")
    with torch.no_grad():
        mine.head.predict.weight.zero_()
        mine.head.predict.bias.zero_()
    some = batch([0, 1])
    some.images[:, :, :, :8] = 77  # flat patches have nothing to guess
    _, masked = mine._split(some.index)
    expected = []
    for image, places in zip(some.images, masked - 1, strict=True):
        for place in places.tolist():
            top, left = place // 4 * 4, place % 4 * 4
            flat = not image[:, top : top + 4, left : left + 4].float().var()
            expected.append(0.0 if flat else (48 - 1) / 48)
    assert mine.loss(some).item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_encoder_sees_no_masked_patch() -> None:
    mine = method_of("mae")
    one = batch([0])
    visible, masked = mine._split(one.index)
    other = one.images.clone()
    for place in (masked[0] - 1).tolist():
        top, left = place // 4 * 4, place % 4 * 4
        other[..., top : top + 4, left : left + 4] = 0
    codes = [mine.encode(images / 127.5 - 1, visible) for images in (one.images, other)]
    assert codes[0].shape == (1, 5, 64)
    assert torch.equal(*codes)


@pytest.mark.parametrize("method", ["bigan", "simclr", "mae"])
def test_two_processes(method: str, image_tree: Path, tmp_path: Path) -> None:
    """Where nothing is normalised over a batch the loss curve is that of one process."""
    run_two(
        "pretrain",
        "--method",
        method,
        "--preset",
        "tiny",
        "--data",
        image_tree,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    load_backbone(str(tmp_path / "run" / "model"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    if method == "mae":
        one = config(tmp_path / "one", image_tree, method="mae", epochs=2)
        pretrain(one)
        for mine, theirs in zip(curve(tmp_path / "run"), curve(one.out), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
