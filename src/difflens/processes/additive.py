"""Processes that add noise of standard deviation sigma and keep the image: VE, EDM and consistency models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from difflens.processes.base import Level, NoiseProcess, noise_ratio, rounded


@dataclass(frozen=True)
class _Additive(NoiseProcess):
    """x_t = x_0 + sigma noise; a level is sigma.

    Attributes:
        bounds: smallest and largest sigma of the process.
    """

    bounds: tuple[Level, Level]
    config: Mapping[str, Any] = field(default_factory=dict)

    unit = "sigma"

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level), level

    def at_log_snr(self, value: float) -> Level:
        low, high = self.bounds
        signal = float(self.coefficients(torch.ones(1, dtype=torch.float64))[0])
        return min(max(rounded(noise_ratio(value) * signal), low), high)


class VarianceExploding(_Additive):
    """NCSN++ with the VE SDE (Song et al., 2021): x_t = (x_0 + 1) / 2 + sigma noise; sigma is told.

    Images are noised in the range 0 to 1, as in the authors' training and in diffusers' pipeline.
    """

    name = "variance exploding"
    prediction = "score"
    fields = ("sigma_min", "sigma_max")

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(level, 0.5), level

    def add_noise(self, images: Tensor, level: Level | Tensor, noise: Tensor) -> Tensor:
        return super().add_noise(images, level, noise) + 0.5

    def to_images(self, x: Tensor) -> Tensor:
        return 2 * x - 1

    def network_time(self, level: Tensor) -> Tensor:
        return level

    def describe(self) -> str:
        return f"{self.name}: x_t = (x_0 + 1) / 2 + sigma noise, and sigma is told"

    def describe_prediction(self) -> str:
        return "the score, the gradient of ln p(x_t): -noise / sigma"


@dataclass(frozen=True)
class EDM(_Additive):
    """EDM (Karras et al., 2022, table 1): the input is scaled by c_in, and ln(sigma) / 4 is told.

    Attributes:
        sigma_data: standard deviation of the data in c_in = 1 / sqrt(sigma^2 + sigma_data^2).
    """

    sigma_data: float = 0.5

    name = "EDM"
    fields = ("sigma_min", "sigma_max", "sigma_data")

    @property
    def prediction(self) -> str:  # type: ignore[override]
        return "v_prediction" if self.config.get("prediction_type") == "v_prediction" else "F"

    def input_scale(self, level: Tensor) -> Tensor:
        return 1 / (level**2 + self.sigma_data**2).sqrt()

    def network_time(self, level: Tensor) -> Tensor:
        return level.log() / 4

    def describe(self) -> str:
        return (
            f"{self.name}: x_t = x_0 + sigma noise, input scaled by 1 / sqrt(sigma^2 + "
            f"{self.sigma_data:g}^2), and ln(sigma) / 4 is told"
        )

    def describe_prediction(self) -> str:
        if self.prediction == "F":
            return "F of EDM's preconditioning: x_0 is c_skip x_t + c_out F"
        return "v, which is -F of EDM's preconditioning: x_0 is c_skip x_t - c_out v"


class ConsistencyModel(EDM):
    """Consistency models (Song et al., 2023): as EDM, and 250 ln(sigma) is told."""

    name = "consistency model"
    prediction = "F"

    def network_time(self, level: Tensor) -> Tensor:
        return 250 * level.log()

    def describe(self) -> str:
        return super().describe().replace("ln(sigma) / 4", "250 ln(sigma)")

    def describe_prediction(self) -> str:
        return "F of the consistency function: x_0 is c_skip x_t + c_out F, with c_out = 0 at sigma_min"
