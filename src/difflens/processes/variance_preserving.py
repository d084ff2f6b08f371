"""Variance-preserving processes (Ho et al., 2020), with every beta schedule of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi
from typing import Any

import torch
from torch import Tensor

from difflens.errors import DiffLensError
from difflens.processes.base import Level, NoiseProcess

# These put abar_T of a schedule with zero terminal SNR at 2^-24, so that sigma_T is finite.
_FLOORED = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)

MOST_STEPS = 10**6
"""The most noise steps of a schedule that is read."""


@dataclass(frozen=True)
class VariancePreserving(NoiseProcess):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, and the network is told the step t.

    Attributes:
        alphas_cumprod: (T,) float64, abar_t for t = 0 .. T - 1, in (0, 1].
        config: the diffusers scheduler configuration of the schedule, for samplers and for saving.
    """

    alphas_cumprod: Tensor
    config: Mapping[str, Any] = field(default_factory=dict)

    name = "variance preserving"
    unit = "step"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], given: Mapping[str, Any]) -> "VariancePreserving":
        """Return the process of a diffusers scheduler.

        It is computed in float64, like OpenAI's; diffusers computes in float32.

        Args:
            fields: all fields of the scheduler, defaults included.
            given: the fields in the scheduler's file.

        Raises:
            DiffLensError: a field has an unknown value.
        """
        betas = _betas(fields)
        abar = torch.cumprod(1 - betas, dim=0)
        if fields.get("rescale_betas_zero_snr"):
            if not abar[-1] < abar[0]:
                raise DiffLensError("rescale_betas_zero_snr needs betas that add noise after the first step")
            abar = _with_zero_terminal_snr(abar, 2.0**-24 if fields.get("_class_name") in _FLOORED else 0.0)
        names = ("beta_schedule", "beta_start", "beta_end")
        known = {name: fields[name] for name in names} | {"num_train_timesteps": len(betas)}
        return cls(abar, {**given, **known})

    @property
    def num_steps(self) -> int:
        """T, the number of noise steps."""
        return len(self.alphas_cumprod)

    @property
    def bounds(self) -> tuple[Level, Level]:  # type: ignore[override]
        return 0, self.num_steps - 1

    @property
    def prediction(self) -> str:  # type: ignore[override]
        return str(self.config.get("prediction_type", "epsilon"))

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod[level.to(self.alphas_cumprod.device)]
        return abar.sqrt(), (1 - abar).sqrt()

    def network_time(self, level: Tensor) -> Tensor:
        return level

    def at(self, share: float) -> int:
        """Return the step at `share`, in [0, 1), of this schedule."""
        return int(share * self.num_steps)

    def at_log_snr(self, value: float) -> int:
        log_snr = (self.alphas_cumprod / (1 - self.alphas_cumprod)).log()
        return int((log_snr - value).abs().argmin())

    def describe(self) -> str:
        named = self.config.get("beta_schedule", "its own")
        betas = named if self.config.get("trained_betas") is None else "its own"
        return f"{self.name}: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, and t is told; {betas} betas"

    def fingerprint(self) -> bytes:
        return self.alphas_cumprod.numpy().tobytes()


def _betas(fields: Mapping[str, Any]) -> Tensor:
    """Return beta_t, (T,) float64, of a scheduler's fields."""
    name, trained = fields["beta_schedule"], fields.get("trained_betas")
    steps, start, end = (fields[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if trained is not None:
        if isinstance(trained, list | tuple) and len(trained) > MOST_STEPS:
            raise DiffLensError(
                f"trained_betas has {len(trained):,} numbers, and at most {MOST_STEPS:,} are read"
            )
        try:
            betas = torch.as_tensor(trained, dtype=torch.float64).flatten()
        except (TypeError, ValueError, OverflowError, RuntimeError):
            betas = torch.empty(0)
    else:
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_STEPS:
            raise DiffLensError(
                f"num_train_timesteps is {steps!r}; it must be a whole number from 1 to {MOST_STEPS:,}"
            )
        for key, value in (("beta_start", start), ("beta_end", end)):
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise DiffLensError(f"{key} is {value!r}; it must be a number from 0 to below 1")
        betas = _named_betas(name, steps, float(start), float(end))
    if not len(betas) or not bool(((betas >= 0) & (betas < 1)).all()):
        raise DiffLensError("trained_betas must be numbers from 0 to below 1")
    return betas


def _named_betas(name: object, steps: int, start: float, end: float) -> Tensor:
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":
        # Nichol and Dhariwal (2021), equation 17
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((edges + 0.008) / 1.008 * pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    if name == "sigmoid":
        # GeoDiff (Xu et al., 2022)
        return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
    raise DiffLensError(
        f"unknown noise schedule {name!r}; known are linear, scaled_linear, squaredcos_cap_v2 and sigmoid"
    )


def _with_zero_terminal_snr(abar: Tensor, floor: float) -> Tensor:
    """Return abar_t shifted and scaled so that abar_T is `floor` (Lin et al., 2024, algorithm 1)."""
    root = abar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([root[:-1] ** 2, root.new_tensor([floor])])
