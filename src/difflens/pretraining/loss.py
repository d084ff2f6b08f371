"""The loss of diffusion: prediction type, weights of noise steps, learned variance.

Notation: abar_t is the schedule's product of alphas, abar_{-1} = 1, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t)
noise.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from difflens.choices import Prediction
from difflens.processes.variance_preserving import VariancePreserving

Predict = Callable[[Tensor, Tensor], Tensor]
"""A network: gives its output for x_t and t."""


class DiffusionLoss:
    """The loss of a batch in which each image has its own noise step.

    - `epsilon`: mean squared error of the noise (Ho et al., 2020, L_simple);
    - `v_prediction`: mean squared error of v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans and Ho,
      2022);
    - `min_snr_gamma`: these errors weighted by `min_snr_weights`;
    - `learned_variance`: the network has twice the channels, of which the second half says where between the
      posterior's variance and beta_t, on the scale of logarithms, the variance is. The hybrid loss of Nichol
      and Dhariwal (2021), L_simple + 0.001 L_vlb: L_vlb is the sum over all T noise steps, here estimated by
      T times that of the batch's, in bits per dimension. It trains the variance alone, as the prediction
      enters it detached.

    Args:
        schedule: the forward process.
        device: the device of the tables by noise step, so that a captured CUDA graph can index them.

    Attributes:
        description: the loss in words, for model cards.
    """

    def __init__(
        self,
        schedule: VariancePreserving,
        prediction: Prediction = "epsilon",
        learned_variance: bool = False,
        min_snr_gamma: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.prediction, self.learned_variance = prediction, learned_variance
        self.description = f"mean squared error of {'the noise' if prediction == 'epsilon' else 'v'}"
        if min_snr_gamma is not None:
            self.description += f", min-SNR weighting {min_snr_gamma:g}"
        if learned_variance:
            self.description += ", learned variance (hybrid)"
        abar = schedule.alphas_cumprod
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        beta = 1 - abar / before
        posterior = beta * (1 - before) / (1 - abar)
        # the posterior variance at t = 0 is 0; as in the paper's code, its logarithm is that at t = 1
        posterior = torch.cat([posterior[1:2], posterior[1:]])

        def table(values: Tensor) -> Tensor:
            return values.float().to(device)

        self.signal, self.noise = table(abar.sqrt()), table((1 - abar).sqrt())
        self.low, self.high = table(posterior.log()), table(beta.log())
        # the coefficient of x_0 in the posterior's mean
        self.share = table(beta * before.sqrt() / (1 - abar))
        self.weights = (
            None if min_snr_gamma is None else table(min_snr_weights(abar, min_snr_gamma, prediction))
        )
        self.bound_weight = schedule.num_steps / 1000

    def __call__(self, predict: Predict, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean loss of the batch, (), with a graph.

        Args:
            predict: the network.
            x0: (B, C, H, W) float32: images in [-1, 1].
            noise: (B, C, H, W) float32: standard normal.
            t: (B,) long: noise steps.
        """
        signal, scale = _at(self.signal, t), _at(self.noise, t)
        x_t = signal * x0 + scale * noise
        output = predict(x_t, t).float()
        predicted = output[:, : x0.shape[1]]
        target = noise if self.prediction == "epsilon" else signal * noise - scale * x0
        if self.weights is None:
            loss = nn.functional.mse_loss(predicted, target)
        else:
            loss = (self.weights[t] * (predicted - target).square().mean((1, 2, 3))).mean()
        if not self.learned_variance:
            return loss
        if self.prediction == "epsilon":
            x0_hat = (x_t - scale * predicted.detach()) / signal
        else:
            x0_hat = signal * x_t - scale * predicted.detach()
        return loss + self.bound_weight * self.bound(x0, x0_hat, output[:, x0.shape[1] :], t).mean()

    def bound(self, x0: Tensor, x0_hat: Tensor, place: Tensor, t: Tensor) -> Tensor:
        """Return (B,): the term of the variational bound of each image at its noise step, in bits per
        dimension.

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 the negative log-likelihood of x_0.

        Args:
            x0, x0_hat: (B, C, H, W): the image and the network's estimate of it.
            place: (B, C, H, W): the network's output for the variance: -1 is the posterior's, 1 is beta_t.
            t: (B,) long: noise steps.
        """
        low, high, share = _at(self.low, t), _at(self.high, t), _at(self.share, t)
        log_variance = (place + 1) / 2 * high + (1 - place) / 2 * low
        # the parts of x_t in both means are equal and cancel; at t = 0 the means are x_0 and its estimate
        divergence = normal_kl(share * x0, low, share * x0_hat, log_variance)
        first = discretised_nll(x0, x0_hat, log_variance)
        terms = torch.where(t.view(-1, 1, 1, 1) == 0, first, divergence)
        return terms.mean((1, 2, 3)) / math.log(2)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """The weight of each noise step, (T,), after Hang et al. (2023), "Efficient diffusion training via
    min-SNR weighting".

    With SNR = abar / (1 - abar), an image's error weighs min(SNR, gamma): as an error of the noise, that is
    min(SNR, gamma) / SNR; of v, min(SNR, gamma) / (SNR + 1).
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))) by element, in nats."""
    gap = log_variance - other_log_variance
    return 0.5 * (gap.exp() - 1 - gap + (mean - other_mean).square() * (-other_log_variance).exp())


def discretised_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood by element, in nats, of 8-bit pixels under a normal distribution (Ho et al.,
    2020, (13)).

    A pixel's probability is that of the interval of 2/255 around it; the intervals of -1 and 1 are open
    outwards.

    Args:
        x: pixels as multiples of 2/255 in [-1, 1].
    """
    precision = (-0.5 * log_variance).exp()
    above = torch.special.ndtr((x - mean + 1 / 255) * precision)
    below = torch.special.ndtr((x - mean - 1 / 255) * precision)
    above = torch.where(x > 0.999, 1, above)
    below = torch.where(x < -0.999, 0, below)
    return -(above - below).clamp(min=1e-12).log()


def _at(table: Tensor, t: Tensor) -> Tensor:
    return table[t].view(-1, 1, 1, 1)
