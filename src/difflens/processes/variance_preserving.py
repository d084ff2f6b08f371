"""Variance-preserving processes (Ho et al., 2020), with every beta schedule of diffusers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import pi
from typing import Any

import torch
from torch import Tensor

from difflens.errors import DiffLensError, counted, listing
from difflens.processes.base import Level, NoiseProcess

# These put abar_T of a schedule with zero terminal SNR at 2^-24, so that sigma_T is finite.
_FLOORED = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)

_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

# Further schedules, of single classes.
_OWN_SCHEDULES = {
    "DDPMParallelScheduler": ("sigmoid", "laplace"),
    "DDPMScheduler": ("sigmoid", "laplace"),
    "HeunDiscreteScheduler": ("exp",),
}

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

    def level_tensor(self, level: Level | Tensor, count: int, device: torch.device | str = "cpu") -> Tensor:
        if not isinstance(level, Tensor):
            self.check((level,))  # -1 would be the last step, and 5.7 the fifth
        return super().level_tensor(level, count, device)

    @property
    def prediction(self) -> str:  # type: ignore[override]
        return str(self.config.get("prediction_type", "epsilon"))

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.config.get("trained_betas") is not None:
            return ("trained_betas", "rescale_betas_zero_snr")
        ends = () if self.config.get("beta_schedule") in _ABAR else ("beta_start", "beta_end")
        return ("num_train_timesteps", "beta_schedule", *ends, "rescale_betas_zero_snr")

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

    def describe_prediction(self) -> str:
        return {
            "epsilon": "epsilon, the noise",
            "v_prediction": "v: sqrt(abar_t) noise - sqrt(1 - abar_t) x_0",
            "sample": "the clean image, x_0",
        }[self.prediction]

    def fingerprint(self) -> bytes:
        return self.alphas_cumprod.numpy().tobytes()


def _betas(fields: Mapping[str, Any]) -> Tensor:
    """Return beta_t, (T,) float64, of a scheduler's fields."""
    trained = fields.get("trained_betas")
    steps, start, end = (fields[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if trained is not None:
        if isinstance(trained, list | tuple) and len(trained) > MOST_STEPS:
            raise DiffLensError(
                f"trained_betas has {counted(len(trained), 'number')}, and at most {MOST_STEPS:,} are read"
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
        betas = _named_betas(fields, steps, float(start), float(end))
    if not len(betas) or not bool(((betas >= 0) & (betas < 1)).all()):
        raise DiffLensError("trained_betas must be numbers from 0 to below 1")
    return betas


def _named_betas(fields: Mapping[str, Any], steps: int, start: float, end: float) -> Tensor:
    name, scheduler = fields["beta_schedule"], str(fields.get("_class_name", "DDPMScheduler"))
    known = (*_SCHEDULES, *_OWN_SCHEDULES.get(scheduler, ()))
    if name not in known:
        raise DiffLensError(
            f"beta_schedule is {name!r}, an unknown noise schedule: {scheduler} has {listing(known)}"
        )
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if name == "sigmoid":
        # GeoDiff (Xu et al., 2022)
        return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
    return _betas_of(_ABAR[name], steps)


def _betas_of(abar: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Return beta_t, (T,) float64 and at most 0.999, of abar as a function of the time from 0 to 1."""
    values = abar(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return (1 - values[1:] / values[:-1]).clamp(0, 0.999)


def _cosine(time: Tensor) -> Tensor:
    """Nichol and Dhariwal (2021), equation 17."""
    return torch.cos((time + 0.008) / 1.008 * pi / 2) ** 2


def _laplace(time: Tensor) -> Tensor:
    """The Laplace schedule of diffusers (Hang et al., 2024): abar is the root of snr / (1 + snr)."""
    left = 0.5 - time
    sign = torch.where(left < 0, -1.0, 1.0)
    log_snr = -0.5 * sign * (1 - 2 * left.abs() + 1e-6).log()
    return log_snr.sigmoid().sqrt()


def _exponential(time: Tensor) -> Tensor:
    return torch.exp(-12 * time)


_ABAR = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}


def _with_zero_terminal_snr(abar: Tensor, floor: float) -> Tensor:
    """Return abar_t shifted and scaled so that abar_T is `floor` (Lin et al., 2024, algorithm 1)."""
    root = abar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.cat([root[:-1] ** 2, root.new_tensor([floor])])
