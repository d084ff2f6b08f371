"""bfloat16 in pre-training: the same loss curve, chosen by a measurement, and kept by --resume."""

from pathlib import Path

import pytest
import torch
import yaml

from difflens import DiffLensError, pretrain
from difflens.configs.options import resolve
from difflens.pretraining import precision as chooser
from difflens.pretraining import pretrain as module
from difflens.pretraining.precision import choose_precision
from difflens.run import measuring
from difflens.run.console import note
from difflens.run.processes import accelerator
from tests.helpers.pretraining import checkpoint, config, curve


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the measurement, whose result a test cannot know; grows by one entry for each."""
    seen: list[str] = []

    def measured(config: object) -> str:
        seen.append("measured")
        return "bfloat16"

    monkeypatch.setattr(chooser, "_measured", measured)
    return seen


@pytest.fixture
def no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", lambda *_, **__: torch.zeros(36, 3, 16, 16))


def test_bfloat16_has_the_loss_curve_of_float32(image_tree: Path, tmp_path: Path, no_samples: None) -> None:
    """Within 1 % in each of 8 epochs, in which the loss falls by more than ten times as much."""
    curves = {}
    for name in ("float32", "bfloat16"):
        run = config(
            tmp_path / name, image_tree, precision=name, epochs=8, learning_rate=2e-3, checkpoint_minutes=9.0
        )
        pretrain(run)
        curves[name] = [loss for _, _, loss, _ in curve(run.out)]
    assert curves["float32"][-1] < 0.9 * curves["float32"][0]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.01)
    assert curves["bfloat16"] != curves["float32"]
    weights = checkpoint(tmp_path / "bfloat16")["unet"].values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_the_choice_is_recorded_and_kept(
    image_tree: Path, tmp_path: Path, no_samples: None, counted: list[str]
) -> None:
    run = config(tmp_path / "run", image_tree, precision="auto", epochs=2, max_minutes=0.0)
    pretrain(run)
    assert counted == ["measured"]
    assert yaml.safe_load((run.out / "config.yaml").read_text())["precision"] == "bfloat16"
    resumed = config(tmp_path / "run", image_tree, precision="auto", epochs=2, resume=True)
    pretrain(resumed)
    assert counted == ["measured"]
    assert "CPU x 1, bfloat16" in (run.out / "model" / "README.md").read_text()
    with pytest.raises(DiffLensError, match="precision was 'bfloat16', now 'float32'"):
        pretrain(config(tmp_path / "run", image_tree, precision="float32", epochs=2, resume=True))


def test_only_diffusion_is_measured(image_tree: Path, tmp_path: Path, counted: list[str]) -> None:
    process = accelerator("cpu")
    options = {"precision": "auto", "method": "supervised"}
    assert choose_precision(resolve(config(tmp_path, image_tree, **options)), process) == "float32"
    assert (
        choose_precision(resolve(config(tmp_path, image_tree, precision="bfloat16")), process) == "bfloat16"
    )
    assert not counted


def test_the_measurement_says_what_it_found(
    image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.05)
    note.cache_clear()
    before = torch.get_rng_state()
    chosen = choose_precision(resolve(config(tmp_path, image_tree, precision="auto")), accelerator("cpu"))
    said = capsys.readouterr().err
    factor = float(said.split("bfloat16 is ")[1].split()[0])
    assert f"precision: {chosen}, since" in said
    assert (chosen == "bfloat16") == (factor > 1.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_grow_are_said(
    image_tree: Path, tmp_path: Path, no_samples: None, capsys: pytest.CaptureFixture[str]
) -> None:
    note.cache_clear()
    pretrain(config(tmp_path / "run", image_tree, image_size=64, epochs=1, max_minutes=0.0))
    assert "the preset tiny reads 3 x 64 x 64: images grow from about 16 to 64" in capsys.readouterr().err
