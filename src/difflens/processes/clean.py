"""The process of networks that read clean images."""

import torch
from torch import Tensor

from difflens.processes.base import Level, NoiseProcess


class Clean(NoiseProcess):
    """No noise: the only level is 0, "clean", and x_0 is the image.

    Args:
        time: the time that a network is told.
    """

    name = "clean images"
    unit = "step"
    bounds = (0, 0)
    config: dict[str, object] = {}  # noqa: RUF012
    prediction = "none"

    def __init__(self, time: int = 0):
        self.time = time

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(level.shape, dtype=torch.float64), torch.zeros(level.shape, dtype=torch.float64)

    def network_time(self, level: Tensor) -> Tensor:
        return torch.full_like(level, self.time)

    def fingerprint(self) -> bytes:
        return f"{self.name} {self.time}".encode()

    def add_noise(self, images: Tensor, level: Level | Tensor, noise: Tensor) -> Tensor:
        return images

    def at_log_snr(self, value: float) -> Level:
        return 0
