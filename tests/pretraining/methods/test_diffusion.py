"""A pre-training that collapses ends, and says so; one spike is no collapse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from difflens import DiffLensError
from difflens.choices import Prediction
from difflens.configs.options import resolve
from difflens.data.load import load_data
from difflens.pretraining.methods.diffusion import DiffusionMethod
from difflens.training.objectives import Look
from tests.helpers.pretraining import config


@pytest.fixture
def method(image_tree: Path, tmp_path: Path) -> DiffusionMethod:
    return new_method(image_tree, tmp_path)


def new_method(images: Path, folder: Path, **changes: Any) -> DiffusionMethod:
    resolved = resolve(config(folder / "run", images, epochs=5_000, **changes))
    return DiffusionMethod(resolved, load_data(str(images)).train, Accelerator(cpu=True))


def train(method: DiffusionMethod, *losses: float, first: int = 1, steps: int = 50) -> None:
    """Let the method see some steps of 8 images at each of these losses."""
    for number, loss in enumerate(losses, first):
        method.began, method.first = 0.0, 0
        method.record(Look(steps * number, torch.full((steps, 1), loss), 1.0, 1.0))


def test_a_collapse_is_told_with_the_losses(method: DiffusionMethod) -> None:
    train(method, 1.0, *[0.04] * 100)
    with pytest.raises(
        DiffLensError, match=r"collapsed in epoch \d+ \(step 51\d0\).* from 0.04\d* to 0.\d+; .*rate"
    ):
        train(method, 1.0, 1.0, 1.0, first=102)


@pytest.mark.parametrize(
    ("prediction", "lowest", "zeros"), [("epsilon", 0.023, 0.999), ("v_prediction", 0.23, 0.587)]
)
def test_a_network_that_predicts_zeros_has_collapsed(
    image_tree: Path, tmp_path: Path, prediction: Prediction, lowest: float, zeros: float
) -> None:
    """With losses of the bundled network of photographs, and of one that predicts zeros."""
    method = new_method(image_tree, tmp_path, prediction=prediction)
    train(method, 1.0, *[lowest] * 100)
    with pytest.raises(DiffLensError, match="collapsed"):
        train(method, *[zeros] * 100, first=102)


def test_a_spike_and_a_slow_rise_are_no_collapse(method: DiffusionMethod) -> None:
    train(method, *[0.04] * 100, 1.0, *[0.04] * 100)
    train(method, *[0.15] * 500)


def test_noisy_losses_of_few_images_are_no_collapse(method: DiffusionMethod) -> None:
    """Single images have losses of 0.005 to 0.9: the running mean is of thousands."""
    generator = torch.Generator().manual_seed(0)
    losses = 0.005 * 180 ** torch.rand(400, generator=generator).pow(4)
    train(method, *losses.tolist(), steps=1)


def test_a_resumed_run_knows_its_lowest_loss(
    method: DiffusionMethod, image_tree: Path, tmp_path: Path
) -> None:
    train(method, *[0.04] * 50)
    resumed = new_method(image_tree, tmp_path)
    resumed.load_state(method.state())
    assert resumed.mean_loss == method.mean_loss
    with pytest.raises(DiffLensError, match="collapsed"):
        train(resumed, *[1.0] * 5)
    earlier = {name: value for name, value in method.state().items() if name != "mean_loss"}
    resumed.load_state(earlier)
    assert resumed.mean_loss == (1.0, 1.0)
