"""BiGAN's losses by hand, and a step of it."""

import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from difflens.configs.options import resolve
from difflens.configs.pretrain import PretrainConfig
from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import MemorySplit
from difflens.noise import Stream, seeded_noise
from difflens.pretraining.methods.bigan import (
    LATENT,
    BiGANMethod,
    Discriminator,
    discriminator_loss,
    encoder_generator_loss,
)
from difflens.pretraining.methods.make import make_method
from difflens.run.processes import accelerator


def bigan(**options: Any) -> BiGANMethod:
    config = resolve(
        PretrainConfig(
            data="", out=Path(), method="bigan", preset="tiny", epochs=100, device="cpu", **options
        )
    )
    torch.manual_seed(0)
    images = MemorySplit("train", torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    made = make_method(config, images, accelerator("cpu"))
    assert isinstance(made, BiGANMethod)
    return made


def batch(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(images, None, torch.arange(count), torch.arange(count))


def hinge(t: float) -> float:
    return max(0.0, 1 - t)


def test_losses_are_those_of_the_paper() -> None:
    """Term by term: unary of the image, unary of the latent, joint; y = 1 for (x, E(x)) and -1 for (G(z),
    z)."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (2 * torch.randn(5, 3, generator=generator) for _ in range(2))
    discriminator = opponents = 0.0
    for y, scores in ((1, real), (-1, fake)):
        for s_x, s_z, s_xz in scores.tolist():
            discriminator += (hinge(y * s_x) + hinge(y * s_z) + hinge(y * s_xz)) / 5
            opponents += y * (s_x + s_z + s_xz) / 5
    assert discriminator_loss(real, fake).item() == pytest.approx(discriminator, rel=1e-5)
    assert encoder_generator_loss(real, fake).item() == pytest.approx(opponents, rel=1e-5)
    assert discriminator_loss(torch.full((2, 3), 1.5), torch.full((2, 3), -1.5)) == 0


def test_unary_scores_see_one_side_and_the_joint_one_both() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3, (4, 8), 16, 5).eval()
    images, latents = torch.randn(6, 3, 16, 16), torch.randn(6, 5)
    scores = discriminator(images, latents)
    assert scores.shape == (6, 3)
    changed = {
        "images": (discriminator(images.flip(0), latents) - scores).abs().amax(0) > 1e-6,
        "latents": (discriminator(images, latents.flip(0)) - scores).abs().amax(0) > 1e-6,
    }
    assert changed["images"].tolist() == [True, False, True]
    assert changed["latents"].tolist() == [False, True, True]


def test_the_discriminator_is_normalised() -> None:
    """Every layer's matrix has a largest singular value of 1 once the power iteration has settled."""
    torch.manual_seed(0)
    discriminator = Discriminator(3, (4, 8), 16, 5)
    for _ in range(50):
        discriminator(torch.randn(2, 3, 16, 16), torch.randn(2, 5))
    layers = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 2 + 1 + 4 + 3
    discriminator.eval()
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)


def scores(networks: nn.ModuleDict, some: Batch) -> tuple[Tensor, Tensor]:
    """The pairs (x, E(x)) and (G(z), z) in the first epoch, seed 0."""
    parts: dict[str, Any] = dict(networks.items())
    z = seeded_noise((LATENT,), some.index, Stream.LATENT, 0, draw=1)
    x = to_float(some.images)
    found = parts["latent"](parts["encoder"](x))
    pairs = torch.cat([x, parts["generator"](z)]), torch.cat([found, z])
    real, fake = parts["discriminator"](*pairs).chunk(2)
    return real, fake


def test_a_step_trains_the_discriminator_first_and_then_encoder_and_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand, from copies of the networks, and with updates that only keep their gradients."""
    mine, some = bigan(), batch()
    found: list[list[Tensor]] = []

    def update(optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        assert [id(p) for p in network.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]
        found.append(list(torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)))

    monkeypatch.setattr(mine, "_update", update)
    monkeypatch.setattr(mine, "rates", mock := Mock(last_epoch=1))
    monkeypatch.setattr(mine, "discriminator_rates", mock)
    networks: Any = copy.deepcopy(mine.networks)
    loss = mine.step(some)

    expected = discriminator_loss(*scores(networks, some))
    torch.testing.assert_close(loss, expected.detach())
    weights = list(networks["discriminator"].parameters())
    torch.testing.assert_close(found[0], list(torch.autograd.grad(expected, weights)))
    # the power iteration of the spectral norms goes on with every forward pass; nothing else has changed
    weights = [p for name in ("encoder", "latent", "generator") for p in networks[name].parameters()]
    expected = encoder_generator_loss(*scores(networks, some))
    torch.testing.assert_close(found[1], list(torch.autograd.grad(expected, weights)))
    assert all(parameter.requires_grad for parameter in mine.discriminator.parameters())


def test_the_generator_that_is_kept_is_the_running_average() -> None:
    mine = bigan(ema_decay=0.6, learning_rate=1e-2, warmup_steps=0)
    average = {name: value.clone() for name, value in mine.generator.state_dict().items()}
    for number in range(1, 8):
        mine.step(batch())
        decay = min(0.6, (1 + number) / (10 + number))
        for name, value in mine.generator.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    kept = mine.backbone().generator.state_dict()
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        kept["layers.0.weight"], mine.generator.state_dict()["layers.0.weight"], atol=1e-3
    )
