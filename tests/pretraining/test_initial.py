"""Pre-training that starts from the weights of another backbone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from difflens import DiffLensError, PretrainConfig, load_backbone, pretrain, process_of
from difflens.configs.options import resolve
from difflens.data.load import load_unlabelled
from difflens.pretraining.export import images_seen
from difflens.pretraining.initial import load_initial
from difflens.pretraining.methods.diffusion import DiffusionMethod
from difflens.pretraining.networks import unet_config
from difflens.run.processes import accelerator
from tests.helpers.adm import Adm
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import checkpoint, config, curve

pytestmark = pytest.mark.usefixtures("no_samples")


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A finished run of 12 epochs of 36 images in 5 batches of 8."""
    root = tmp_path_factory.mktemp("former")
    run = config(root / "run", make_image_tree(root / "images"), epochs=12, learning_rate=2e-3, ema_decay=0.9)
    pretrain(run)
    return run


def later(former: PretrainConfig, out: Path, **changes: Any) -> PretrainConfig:
    initial = {"init_from": str(former.out / "model")} if "init_from" not in changes else {}
    return replace(former, out=out, epochs=1, **initial, **changes)


def test_the_loss_goes_on_where_the_former_run_ended(former: PretrainConfig, tmp_path: Path) -> None:
    pretrain(later(former, tmp_path / "fresh", init_from=None))
    folder = pretrain(later(former, tmp_path / "warm")).path
    first, last = curve(former.out)[0][2], curve(former.out)[-1][2]
    fresh, warm = curve(tmp_path / "fresh")[0][2], curve(tmp_path / "warm")[0][2]
    assert abs(warm - last) < 0.2 * (first - last)
    assert warm < 0.8 * fresh
    # 12 epochs of 5 steps of 8 images before, one epoch now
    assert json.loads((folder / "pretraining.json").read_text()) == {"images_seen": 520}
    card = (folder / "README.md").read_text()
    assert f"| initial weights | `{former.out / 'model'}`, which had seen 480 images |" in card
    assert "| images seen | 40 |" in card


def test_network_and_average_start_from_the_saved_weights(former: PretrainConfig, tmp_path: Path) -> None:
    run = resolve(later(former, tmp_path / "run"))
    method = DiffusionMethod(run, load_unlabelled(run.data), accelerator("cpu"))
    saved = UNet2DModel.from_pretrained(former.out / "model" / "unet", torch_dtype=torch.float32)
    for (name, value), own, average in zip(
        saved.named_parameters(), method.unet.parameters(), method.ema, strict=True
    ):
        assert torch.equal(value, own), name
        assert torch.equal(value, average), name


def test_the_average_of_a_short_training_is_not_that_of_its_start(
    former: PretrainConfig, tmp_path: Path
) -> None:
    """With the usual decay of 0.9995, which 60 steps would hardly move."""
    initial = UNet2DModel.from_pretrained(former.out / "model" / "unet", torch_dtype=torch.float32)
    run = replace(later(former, tmp_path / "run"), epochs=12, ema_decay=0.9995)
    pretrain(run)
    state = checkpoint(run.out)
    moved = trained = 0.0
    for (name, before), average in zip(initial.named_parameters(), state["ema"], strict=True):
        moved += float((average - before.detach()).square().sum())
        trained += float((state["unet"][name] - before.detach()).square().sum())
    assert moved > 0.5 * trained > 0


def test_a_stopped_run_goes_on_without_the_initial_folder(former: PretrainConfig, tmp_path: Path) -> None:
    """The checkpoint holds the weights, and the images that they had seen."""
    moved = tmp_path / "moved"
    (former.out / "model").rename(moved)
    try:
        whole = pretrain(later(former, tmp_path / "whole", init_from=str(moved))).path
        stopped = later(former, tmp_path / "stopped", init_from=str(moved), max_minutes=1e-9)
        pretrain(stopped)
    finally:
        moved.rename(former.out / "model")
    assert checkpoint(stopped.out)["step"] == 1
    resumed = pretrain(replace(stopped, resume=True, max_minutes=None)).path
    assert curve(stopped.out) == curve(tmp_path / "whole")
    assert images_seen(str(resumed)) == images_seen(str(whole)) == 520
    assert load_backbone(str(whole)).fingerprint() == load_backbone(str(resumed)).fingerprint()


def test_a_network_without_a_record_is_resumed_too(former: PretrainConfig, tmp_path: Path) -> None:
    """How many images it had seen is not known."""
    initial = tmp_path / "initial"
    shutil.copytree(former.out / "model", initial)
    for name in ("pretraining.json", "README.md"):
        (initial / name).unlink()
    run = later(former, tmp_path / "run", init_from=str(initial), max_minutes=1e-9)
    pretrain(run)
    folder = pretrain(replace(run, resume=True, max_minutes=None)).path
    assert images_seen(str(folder)) is None
    assert "which had seen an unknown number of images" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "squaredcos_cap_v2"}, "its noise process is .* linear betas.* squaredcos_cap_v2 betas"),
        ({"prediction": "v_prediction"}, "prediction is epsilon, not v_prediction"),
        ({"learned_variance": True}, "out_channels is 3, not 6"),
        ({"init_from": "fashion"}, r"block_out_channels is \[32, 64, 128, 96\], not \[16, 32\]"),
        ({"init_from": "fashion"}, "in_channels is 1, not 3"),
        ({"init_from": "pixels"}, "is no UNet2DModel"),
        ({"init_from": "random:fashion"}, "untrained: leave it out"),
        ({"init_from": "nowhere/at/all"}, "no backbone 'nowhere/at/all'"),
        ({"method": "simclr"}, "simclr does not read options of diffusion: leave out --init-from"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    former: PretrainConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = replace(later(former, tmp_path / "run", **changes), ema_decay=None)
    with pytest.raises(DiffLensError, match=message):
        pretrain(run)
    assert not (tmp_path / "run").exists()


def network(learned_variance: bool) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**unet_config("tiny", learned_variance))


@pytest.mark.parametrize("variance", [None, "learned"])
def test_the_output_tells_a_learned_variance(tmp_path: Path, variance: str | None) -> None:
    """DDIM's scheduler has no such field, and checkpoint files have no scheduler."""
    stored, unet = network(learned_variance=True), network(learned_variance=True)
    stored.conv_out.bias.data.fill_(0.5)
    stored.save_pretrained(tmp_path)
    scheduler = DDPMScheduler(variance_type=variance) if variance else DDIMScheduler()
    scheduler.save_pretrained(tmp_path)
    schedule = process_of({"variance_type": "learned_range"})
    if variance:
        with pytest.raises(DiffLensError, match="its variance is learned, not as a share, not learned"):
            load_initial(str(tmp_path), unet, schedule)
    else:
        load_initial(str(tmp_path), unet, schedule)
        assert torch.equal(unet.conv_out.bias, stored.conv_out.bias)


def test_a_checkpoint_file_has_the_schedule_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.pt"
    torch.save(Adm(64, (1,), 1, (1,), 64).random_state(), file)
    backbone: Any = load_backbone(str(file), image_size=16)
    unet = UNet2DModel.from_config(backbone.unet.config, sample_size=16)
    cosine = process_of({"beta_schedule": "squaredcos_cap_v2"})
    load_initial(str(file), unet, cosine)
    assert torch.equal(unet.conv_out.weight, backbone.unet.conv_out.weight)
    said = " ".join(capsys.readouterr().err.split())
    assert "does not hold its noise schedule; it is taken to be squaredcos_cap_v2, as in this run" in said
    file.with_suffix(".json").write_text('{"noise_schedule": "linear"}')
    with pytest.raises(DiffLensError, match=r"its noise process is .* linear betas"):
        load_initial(str(file), unet, cosine)


def test_images_of_another_side(
    former: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretrain(later(former, tmp_path / "run", image_size=24)).path
    assert load_backbone(str(folder)).image_size == 24
    assert "was trained on images of side 16, and goes on with side 24" in capsys.readouterr().err


def test_images_seen_of_folders_without_a_record(tmp_path: Path) -> None:
    assert images_seen("fashion") == 47_000 * 256  # from the card
    assert images_seen(str(tmp_path)) is None
    (tmp_path / "pretraining.json").write_text('{"images_seen": -1}')
    with pytest.raises(DiffLensError, match=r"pretraining\.json: images_seen is -1"):
        images_seen(str(tmp_path))
