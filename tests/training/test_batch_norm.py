"""A single image left in the last batch, or in every batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

from difflens.training.batch_norm import steady_batch_norms
from tests.helpers.cli import run


def test_one_value_a_channel_is_normalised_by_the_running_statistics() -> None:
    layer = nn.BatchNorm2d(2)
    layer.running_mean.copy_(torch.tensor([1.0, 3.0]))
    layer.running_var.copy_(torch.tensor([4.0, 9.0]))
    steady_batch_norms(nn.Sequential(layer))
    given = torch.tensor([5.0, 0.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(layer(given).flatten(), torch.tensor([2.0, -1.0]))
    assert layer.training
    assert layer.running_mean.tolist() == [1, 3]


def test_other_batches_are_normalised_as_usual() -> None:
    torch.manual_seed(0)
    steady, usual, given = nn.BatchNorm2d(2), nn.BatchNorm2d(2), torch.randn(1, 2, 2, 2)
    steady_batch_norms(steady)
    assert torch.equal(steady(given), usual(given))
    assert torch.equal(steady.running_var, usual.running_var)


@pytest.mark.parametrize("augment", ["none", "flip"], ids=["cached", "online"])
def test_the_convolutional_head_on_single_cells(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, augment: str
) -> None:
    """36 images in batches of 5 leave one."""
    words = ("--backbone", backbone_folder, "--data", image_tree, "--head", "cnn", "--pool", 1)
    options = ("--epochs", 1, "--batch-size", 5, "--augment", augment, "--device", "cpu")
    assert run("probe", *words, *options, "--out", tmp_path / "run") == 0
