"""The training objective against direct computations: torch.distributions, and the papers' formulas image by
image."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from difflens.pretraining.loss import DiffusionLoss, discretised_nll, min_snr_weights, normal_kl
from difflens.processes.schedulers import process_of
from difflens.processes.variance_preserving import VariancePreserving

LINEAR = process_of({"beta_schedule": "linear"})
COSINE = process_of({"beta_schedule": "squaredcos_cap_v2"})


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """(x0, noise, t): pixels of 8 bits, black and white ones among them, and both ends of the schedule."""
    pixels = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0] = torch.tensor([0, 255, 0, 255])
    return pixels / 127.5 - 1, draw(5, 3, 4, 4, seed=1), torch.tensor([0, 1, 20, 500, 999])


def test_divergence_is_that_of_normal_distributions() -> None:
    a, b, c, d = (draw(100, seed=seed).double() for seed in range(4))
    expected = kl_divergence(Normal(a, (b / 2).exp()), Normal(c, (d / 2).exp()))
    torch.testing.assert_close(normal_kl(a, b, c, d), expected)


def test_likelihood_of_pixels_is_the_probability_of_their_interval() -> None:
    x = torch.arange(256).double() / 127.5 - 1
    for mean, log_variance in ((0.1, -3.0), (-1.0, -9.0), (0.97, -5.0)):
        likelihood = (-discretised_nll(x, torch.tensor(mean), torch.tensor(log_variance))).exp()
        assert float(likelihood.sum()) == pytest.approx(1, abs=1e-6)
        normal = Normal(torch.tensor(mean).double(), math.exp(log_variance / 2))
        inner = normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)
        torch.testing.assert_close(likelihood[1:-1], inner[1:-1].clamp(min=1e-12), atol=1e-9, rtol=1e-5)
        assert float(likelihood[0]) == pytest.approx(max(1e-12, float(normal.cdf(x[0] + 1 / 255))), rel=1e-5)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_min_snr_weights(schedule: VariancePreserving) -> None:
    """In all cases, the error of x_0 weighs min(SNR, gamma)."""
    gamma = 5.0
    epsilon, v = (
        min_snr_weights(schedule.alphas_cumprod, gamma, kind) for kind in ("epsilon", "v_prediction")
    )
    for t in (0, 1, 100, 400, 999):
        abar = float(schedule.alphas_cumprod[t])
        snr = abar / (1 - abar)
        assert float(epsilon[t]) == pytest.approx(min(1, gamma / snr))
        # of two networks whose images differ by 1, the noise differs by sqrt(SNR) and v by 1 / sqrt(1 - abar)
        assert float(epsilon[t]) * snr == pytest.approx(min(snr, gamma))
        assert float(v[t]) / (1 - abar) == pytest.approx(min(snr, gamma))


def test_the_default_is_the_mean_squared_error_of_the_noise(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = batch
    seen = []

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    assert float(DiffusionLoss(LINEAR)(predict, x0, noise, t)) == pytest.approx(float(noise.square().mean()))
    torch.testing.assert_close(seen[0], LINEAR.add_noise(x0, t, noise))


def test_weights_multiply_each_images_error(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = batch
    loss = DiffusionLoss(LINEAR, min_snr_gamma=5.0)(lambda x_t, t: torch.zeros_like(x_t), x0, noise, t)
    weights = min_snr_weights(LINEAR.alphas_cumprod, 5.0, "epsilon")
    by_hand = [float(weights[t[k]]) * float(noise[k].square().mean()) for k in range(len(t))]
    assert float(loss) == pytest.approx(sum(by_hand) / len(by_hand))


def test_who_predicts_v_well_loses_nothing(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """By the geometry of v: x_0 = signal * x_t - scale * v, noise = scale * x_t + signal * v."""
    x0, noise, t = batch
    signal, scale = (part.float().view(-1, 1, 1, 1) for part in LINEAR.coefficients(t))
    loss = DiffusionLoss(LINEAR, "v_prediction")
    assert float(loss(lambda x_t, _: (noise - scale * x_t) / signal, x0, noise, t)) < 1e-6
    assert float(loss(lambda x_t, _: noise, x0, noise, t)) > 0.1


def output_of(prediction: str, x0: Tensor, noise: Tensor, t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that is wrong by a little, with variances all over the range."""
    signal, scale = (part.float().view(-1, 1, 1, 1) for part in LINEAR.coefficients(t))
    right = noise if prediction == "epsilon" else signal * noise - scale * x0
    output = torch.cat([right + 0.05 * draw(*x0.shape, seed=2), draw(*x0.shape, seed=3).tanh()], dim=1)
    return lambda x_t, t: output


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_hybrid_loss_against_the_definition(prediction: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Ho et al. (2020), equations 5, 7 and 13, with the variance of Nichol and Dhariwal (2021), equation
    15."""
    x0, noise, t = batch
    predict = output_of(prediction, x0, noise, t)
    abar = LINEAR.alphas_cumprod
    simple, bits = [], []
    for k, step in enumerate(t.tolist()):
        image, at = x0[k].double(), abar[step]
        previous = abar[step - 1] if step else torch.tensor(1.0).double()
        alpha = at / previous
        x_t = at.sqrt() * image + (1 - at).sqrt() * noise[k].double()
        output, v = predict(x0, t)[k].double().chunk(2)
        if prediction == "epsilon":
            target, guess = noise[k], (x_t - (1 - at).sqrt() * output) / at.sqrt()
        else:
            target = at.sqrt() * noise[k] - (1 - at).sqrt() * image
            guess = at.sqrt() * x_t - (1 - at).sqrt() * output
        simple.append(float((output - target).square().mean()))
        first = (
            (1 - alpha) * (1 - previous) / (1 - at) if step else (1 - abar[1] / at) * (1 - at) / (1 - abar[1])
        )
        spread = (((v + 1) / 2 * (1 - alpha).log() + (1 - v) / 2 * first.log()) / 2).exp()
        means = [
            (previous.sqrt() * (1 - alpha) * x + alpha.sqrt() * (1 - previous) * x_t) / (1 - at)
            for x in (image, guess)
        ]
        if step:
            nats = kl_divergence(Normal(means[0], first.sqrt()), Normal(means[1], spread))
        else:
            normal = Normal(means[1], spread)
            above = torch.where(image == 1, 1, normal.cdf(image + 1 / 255))
            nats = -(above - torch.where(image == -1, 0, normal.cdf(image - 1 / 255))).clamp(min=1e-12).log()
        bits.append(float(nats.mean()) / math.log(2))
    loss = DiffusionLoss(LINEAR, prediction, learned_variance=True)(predict, x0, noise, t)
    expected = sum(simple) / 5 + 1000 / 1000 * sum(bits) / 5
    assert sum(bits) > 0.1 * sum(simple)
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_the_bound_trains_the_variance_alone(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, t = batch
    output = output_of("epsilon", x0, noise, t)(x0, t).requires_grad_()
    DiffusionLoss(LINEAR, learned_variance=True)(lambda x_t, t: output, x0, noise, t).backward()
    hybrid = output.grad
    assert hybrid is not None
    simple = torch.autograd.grad(torch.nn.functional.mse_loss(output[:, :3], noise), output)[0]
    torch.testing.assert_close(hybrid[:, :3], simple[:, :3])
    assert hybrid[:, 3:].abs().min() > 0


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_a_fresh_network_has_finite_gradients_at_every_noise_step(schedule: VariancePreserving) -> None:
    t = torch.arange(1000)
    output = (0.01 * draw(1000, 2, 2, 2, seed=0)).requires_grad_()
    loss = DiffusionLoss(schedule, learned_variance=True)
    loss(lambda x_t, t: output, draw(1000, 1, 2, 2, seed=1).tanh(), draw(1000, 1, 2, 2, seed=2), t).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
