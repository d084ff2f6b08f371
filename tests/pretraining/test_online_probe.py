"""The probe of a network in training: what it measures, and that the training does not notice it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from difflens import (
    DiffLensError,
    FrozenExtractor,
    PretrainConfig,
    SweepConfig,
    load_backbone,
    load_data,
    pretrain,
    sweep,
)
from difflens.configs.options import resolve
from difflens.pretraining.online_probe import OnlineProbe
from difflens.run.processes import accelerator
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import checkpoint, config, curve
from tests.helpers.processes import run_two
from tests.helpers.trackers import curves

pytestmark = pytest.mark.usefixtures("no_samples")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A finished run of three epochs that was measured after the second and the third."""
    root = tmp_path_factory.mktemp("probed")
    images = make_image_tree(root / "images")
    run = config(root / "run", images, probe_data=str(images), probe_every=2, log=("tensorboard",))
    pretrain(run)
    return run


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def probes(run: Path) -> dict[int, list[dict[str, Any]]]:
    return {record["epoch"]: record["probe"] for record in records(run) if "probe" in record}


@pytest.mark.parametrize("method", ["diffusion", "simclr"])
def test_it_measures_what_sweep_measures_on_the_saved_weights(
    probed: PretrainConfig, tmp_path: Path, method: Any
) -> None:
    run = replace(probed, out=tmp_path / "run", method=method, epochs=2)
    folder = pretrain(run).path
    places = probes(run.out)[2]
    assert len(places) == 3
    result = sweep(
        SweepConfig(
            out=tmp_path / "sweep",
            backbone=str(folder),
            data=run.data,
            blocks=tuple(place["block"] for place in places),
            noise_steps=(places[0]["noise_step"],),
            classifiers=("ridge", "knn"),
            device="cpu",
            workers=0,
        )
    )
    for name in ("ridge", "knn"):
        assert [place[name] for place in places] == result.accuracy[name][0].tolist()
    # effective rank against its definition: the entropy of singular values
    images = load_data(run.data).train
    place = places[1]
    extractor = FrozenExtractor(load_backbone(str(folder)), (place["block"],), (place["noise_step"],))
    pixels = torch.stack([images.image(i) for i in range(len(images))]) / 127.5 - 1
    with torch.no_grad():
        (maps,) = extractor(pixels, images.index).values()
    values = torch.linalg.svdvals(maps.mean((2, 3)).double())
    shares = values / values.sum() + 1e-7
    expected = float((-(shares * shares.log()).sum()).exp())
    assert place["effective_rank"] == pytest.approx(expected, rel=1e-3)


def test_the_training_does_not_notice_it(probed: PretrainConfig, tmp_path: Path) -> None:
    plain = replace(probed, out=tmp_path / "plain", probe_data=None, probe_every=None)
    pretrain(plain)
    assert curve(plain.out) == curve(probed.out)
    torch.testing.assert_close(checkpoint(plain.out)["unet"], checkpoint(probed.out)["unet"], atol=0, rtol=0)
    assert probes(plain.out) == {}
    assert sorted(probes(probed.out)) == [2, 3]


def test_random_numbers_of_a_training_go_on_after_it(probed: PretrainConfig, tmp_path: Path) -> None:
    """A copy of the network draws weights before it gets those of the training."""
    states = []

    def watch(self: Any, look: Any) -> Any:
        before = torch.get_rng_state()
        record = real(self, look)
        states.append((before, torch.get_rng_state(), record))
        return record

    from difflens.pretraining.methods.base import PretrainingMethod

    real = PretrainingMethod.record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainingMethod, "record", watch)
        pretrain(replace(probed, out=tmp_path / "run", epochs=1))
    (before, after, record) = states[-1]
    assert "probe" in record
    assert torch.equal(before, after)


def test_a_stopped_run_measures_the_same(probed: PretrainConfig, tmp_path: Path) -> None:
    run = replace(probed, out=tmp_path / "run")
    pretrain(replace(run, max_minutes=1e-9))
    assert not (run.out / "log.jsonl").exists()
    pretrain(replace(run, resume=True))
    assert probes(run.out) == probes(probed.out)
    assert curve(run.out) == curve(probed.out)


def test_it_is_seen_by_trackers_and_in_the_model_card(probed: PretrainConfig) -> None:
    points = curves(probed.out)
    place = probes(probed.out)[2][0]
    name = f"block{place['block']}-t{place['noise_step']}"
    assert [step for step, _ in points[f"probe/ridge/{name}"]] == [10, 15]
    assert points[f"probe/ridge/{name}"][0][1] == pytest.approx(place["ridge"])
    assert f"probe/effective_rank/{name}" in points
    card = (probed.out / "model" / "README.md").read_text()
    assert "| probe | 36 training images of" in card
    assert "of which 6 validate; " in card
    assert "![accuracy per epoch](probe.png)" in card
    assert (probed.out / "model" / "probe.png").stat().st_size > 0


def test_two_processes_measure_the_same(probed: PretrainConfig, tmp_path: Path) -> None:
    """Each reads half of the images; gradients differ in their last bits."""
    options = {"data": probed.data, "probe-data": probed.data, "epochs": 1, "batch-size": 8, "device": "cpu"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run_two("pretrain", "--preset", "tiny", *words, "--learning-rate", 0, "--out", tmp_path / "two")
    one = replace(probed, out=tmp_path / "one", epochs=1, learning_rate=0.0)
    pretrain(one)
    assert probes(tmp_path / "two") == probes(one.out)


def test_two_processes_measure_the_network_that_is_saved(probed: PretrainConfig, tmp_path: Path) -> None:
    """Batch normalisation has other statistics in each process."""
    options = {"data": probed.data, "probe-data": probed.data, "epochs": 1, "batch-size": 8, "device": "cpu"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run_two("pretrain", "--preset", "tiny", "--method", "simclr", *words, "--out", tmp_path / "two")
    saved = load_backbone(str(tmp_path / "two" / "model"))
    run = resolve(replace(probed, out=tmp_path / "one", method="simclr"))
    probe = OnlineProbe(run, saved.in_channels, saved.image_size, accelerator("cpu"))
    (found,) = probes(tmp_path / "two").values()
    for place, expected in zip(found, probe.measure(saved)["probe"], strict=True):
        assert place == pytest.approx(expected, rel=1e-3)


def test_features_that_overflow_leave_the_record_without_a_probe(
    probed: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network normalises its output, so the training goes on."""
    initial = tmp_path / "initial"
    shutil.copytree(probed.out / "model", initial)
    unet = UNet2DModel.from_pretrained(initial / "unet", torch_dtype=torch.float32)
    weight = unet.conv_in.weight.data
    weight.mul_(6e4 / weight.abs().max())
    unet.half().save_pretrained(initial / "unet")
    run = replace(probed, out=tmp_path / "run", epochs=2, probe_every=1, init_from=str(initial), log=())
    pretrain(run)
    assert [record["epoch"] for record in records(run.out)] == [1, 2]
    assert probes(run.out) == {}
    warned = " ".join(capsys.readouterr().err.split())
    assert warned.count("the probe measures nothing, and the training goes on: the features of block") == 1
    assert "probe.png" not in (run.out / "model" / "README.md").read_text()


def test_folders_without_a_split(probed: PretrainConfig, tmp_path: Path) -> None:
    """The images held out of the training are held out of the probe; of other data a fifth is left unread."""
    flat = Path(probed.data) / "train"  # CLASS/IMAGE, 12 of each
    run = replace(probed, out=tmp_path / "same", data=str(flat), probe_data=str(flat), val_fraction=0.25)
    pretrain(replace(run, epochs=1, probe_every=1))
    assert "27 training images" in (run.out / "model" / "README.md").read_text()
    # whether the training reads this folder, however it is written, or another one
    for name, data in (("all", str(flat)), ("slash", f"{flat}/"), ("other", probed.data)):
        run = replace(probed, out=tmp_path / name, data=data, probe_data=str(flat), epochs=1, probe_every=1)
        pretrain(run)
        card = (run.out / "model" / "README.md").read_text()
        assert any(f"{count} training images" in card for count in (27, 28, 29, 30))
        (share,) = re.findall(r"([0-9.]+) % of the time", card)
        assert 0 < float(share) < 100


def test_labelled_data_need_no_test_images(probed: PretrainConfig, tmp_path: Path) -> None:
    """Four fifths of a class are read, of a CSV file without a split and of a folder with train/ alone."""
    train = Path(probed.data) / "train"
    lines = [f"{path},{path.parent.name}" for path in sorted(train.glob("*/*.png"))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *lines]) + "\n")
    alone = tmp_path / "alone"
    shutil.copytree(train, alone / "train")
    for name, spec in (("table", table), ("folder", alone)):
        run = replace(probed, out=tmp_path / name, probe_data=str(spec), epochs=1, probe_every=1)
        pretrain(run)
        card = (run.out / "model" / "README.md").read_text()
        assert any(f"{count} training images" in card for count in (27, 28, 29, 30))


def test_data_without_labels_or_with_too_few_images_is_refused(
    probed: PretrainConfig, tmp_path: Path
) -> None:
    flat = Path(probed.data) / "train" / "red"
    single = make_image_tree(tmp_path / "single", per_class=1)
    broken = make_image_tree(tmp_path / "broken")
    (broken / "train" / "red" / "3.png").write_bytes(b"no image")
    one_class = make_image_tree(tmp_path / "one-class")
    for other in (*one_class.glob("*/green"), *one_class.glob("*/blue")):
        shutil.rmtree(other)
    for changes, message in (
        ({"probe_data": str(flat)}, f"--probe-data needs images with labels: {flat} has no class folders"),
        ({"probe_data": str(one_class)}, "^one-class has one class, 'red': --probe-data tells several apart"),
        ({"probe_data": str(single)}, "holds out a fifth of each class, and no class has two images"),
        ({"probe_data": str(broken)}, r"3\.png"),
        ({"probe_data": None}, "without --probe-data nothing is measured: leave out --probe-every"),
    ):
        with pytest.raises(DiffLensError, match=message):
            pretrain(replace(probed, out=tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()
    run = replace(probed, out=tmp_path / "run", probe_data=str(broken), epochs=1, on_bad_image="skip")
    pretrain(run)
    assert "35 training images" in (run.out / "model" / "README.md").read_text()
