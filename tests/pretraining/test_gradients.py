"""Micro-batches and recomputed activations change memory and nothing else."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from difflens.pretraining import networks
from difflens.pretraining.gradients import Gradients
from difflens.pretraining.loss import DiffusionLoss
from difflens.processes.schedulers import process_of
from difflens.run.processes import accelerator


def gradients_of(**options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the tiny network, with learned variance, on eight images."""
    torch.manual_seed(0)
    unet = UNet2DModel(**networks.unet_config("tiny", learned_variance=True))
    loss = DiffusionLoss(process_of({}), learned_variance=True, min_snr_gamma=5.0)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    gradients = Gradients(unet, loss, accelerator("cpu"), **options)
    inputs = (images, torch.arange(8), torch.arange(8) * 100, torch.tensor(1))
    gradients(*inputs)
    first = found(unet)
    loss_again = gradients(*inputs)
    # not added to those of the call before
    torch.testing.assert_close(found(unet), first, atol=0, rtol=0)
    return loss_again, first


def found(unet: UNet2DModel) -> dict[str, Tensor]:
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for every pass through a residual block."""
    seen: list[int] = []
    forward = ResnetBlock2D.forward

    def count(self: ResnetBlock2D, *inputs: Any, **options: Any) -> Tensor:
        seen.append(1)
        return forward(self, *inputs, **options)

    monkeypatch.setattr(ResnetBlock2D, "forward", count)
    return seen


def test_micro_batches_have_the_batchs_gradient() -> None:
    loss, whole = gradients_of()
    mean, parts = gradients_of(accumulate=4)
    torch.testing.assert_close(mean, loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_gradient(precision: str, calls: list[int]) -> None:
    loss, kept = gradients_of(precision=precision)
    once = len(calls)
    calls.clear()
    same, recomputed = gradients_of(precision=precision, recompute=True)
    assert 1.5 * once < len(calls) <= 2 * once
    assert same == loss
    assert recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=0, rtol=0)
