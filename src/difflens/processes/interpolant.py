"""Linear interpolants between image and noise: flow matching, SiT and REPA."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from difflens.processes.base import Level, NoiseProcess, noise_ratio, rounded


@dataclass(frozen=True)
class LinearInterpolant(NoiseProcess):
    """x_t is a straight line between image and noise, at a time in [0, 1].

    - towards noise (flow matching in diffusers; REPA): x_t = (1 - t) x_0 + t noise;
    - towards the image (SiT, Ma et al., 2024): x_t = t x_0 + (1 - t) noise.

    Attributes:
        towards_noise: the direction of time; True: t = 1 is pure noise.
        time_scale: the network is told t times this.
    """

    towards_noise: bool = True
    time_scale: float = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)

    name = "linear interpolant"
    unit = "time"
    bounds = (0.0, 1.0)
    prediction = "velocity"
    fields = ("num_train_timesteps",)

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - level, level) if self.towards_noise else (level, 1 - level)

    def network_time(self, level: Tensor) -> Tensor:
        return level * self.time_scale

    def at_log_snr(self, value: float) -> Level:
        ratio = noise_ratio(value)
        noise = rounded(ratio / (1 + ratio))
        return noise if self.towards_noise else rounded(1 - noise)

    def describe(self) -> str:
        formula = "(1 - t) x_0 + t noise" if self.towards_noise else "t x_0 + (1 - t) noise"
        told = "t" if self.time_scale == 1 else f"{self.time_scale:g} t"
        end = "pure noise" if self.towards_noise else "the image"
        return f"{self.name}: x_t = {formula}, and {told} is told; t = 1 is {end}"

    def describe_prediction(self) -> str:
        return f"the velocity dx_t / dt: {'noise - x_0' if self.towards_noise else 'x_0 - noise'}"
