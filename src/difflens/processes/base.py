"""The contract of a noise process: how images are noised, and what the network is fed and told."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from math import exp, inf, isfinite, log
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from difflens.errors import DiffLensError, listing

Level = int | float
"""A noise level in the unit of its process: a whole step, a sigma, or a time from 0 to 1."""

Unit = Literal["step", "sigma", "time"]


class NoiseProcess(ABC):
    """A family of noised images x_t = signal(t) x_0 + offset + noise(t) n, with standard normal n.

    Attributes:
        name: the kind of process, in words.
        unit: what a level counts.
        bounds: lowest and highest level, both allowed.
        config: the diffusers scheduler configuration of the process; empty if no file describes it.
        prediction: what the network predicts, in a word: diffusers' name for it, or `velocity`, `score` or
            `F`, the output that preconditioning turns into the image.
        fields: the fields of a diffusers scheduler that decide x_t, the network's input or its time, or the
            bounds. All other fields leave features as they are.
    """

    name: ClassVar[str]
    unit: ClassVar[Unit]
    bounds: tuple[Level, Level]
    config: Mapping[str, Any]
    prediction: str
    fields: tuple[str, ...] = ()

    @abstractmethod
    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal(t) and noise(t), float64 in the shape of `level`, a tensor of `level_tensor`."""

    def input_scale(self, level: Tensor) -> Tensor | None:
        """Return the factor of x_t at the network's input, in the shape of `level`; None: 1."""
        return None

    @abstractmethod
    def network_time(self, level: Tensor) -> Tensor:
        """Return the time that the network is told, in the shape of `level`."""

    @abstractmethod
    def at_log_snr(self, value: float) -> Level:
        """Return the level whose log-SNR is `value`, clipped to the bounds."""

    def describe(self) -> str:
        """Return the process and its formula, in one line."""
        return self.name

    def describe_prediction(self) -> str:
        """Return what the network predicts, with its formula, in one line."""
        return self.prediction

    def fingerprint(self) -> bytes:
        """Return bytes that differ between processes that noise images, or feed a network, differently."""
        return self.describe().encode()

    def level_tensor(self, level: Level | Tensor, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Return one level for each of `count` images, (count,): long for steps, else float64.

        Raises:
            DiffLensError: a number is no step of a schedule; the values of tensors are not looked at.
        """
        dtype = torch.long if self.unit == "step" else torch.float64
        return torch.as_tensor(level, device=device).to(dtype).expand(count)

    def add_noise(self, images: Tensor, level: Level | Tensor, noise: Tensor) -> Tensor:
        """Return x_t, (B, C, H, W), of images in [-1, 1] or of latents, with standard normal `noise`.

        Args:
            images, noise: (B, C, H, W), floating-point.
            level: the noise level, one for all images or (B,).

        Raises:
            DiffLensError: a number is outside the process; the values of tensors are not looked at. Or the
                images are not floating-point.
        """
        low, high = self.bounds
        # a scheduler's own levels are rounded to float32
        if not isinstance(level, Tensor) and not (1 - 1e-5) * low <= level <= (1 + 1e-5) * high:
            self.check((level,))
        if not images.is_floating_point():
            raise DiffLensError(f"images of dtype {images.dtype}: noise is added to floating-point numbers")
        signal, scale = self._columns(level, images)
        return signal * images + scale * noise

    def to_images(self, x: Tensor) -> Tensor:
        """Return noiseless x_t in the range of images, [-1, 1], or of latents."""
        return x

    def network_input(self, x_t: Tensor, level: Tensor) -> Tensor:
        """Return what the network is fed, (B, C, H, W), for x_t at `level`, (B,) of `level_tensor`."""
        scale = self.input_scale(level)
        return x_t if scale is None else x_t * scale.reshape(-1, 1, 1, 1).to(x_t.dtype)

    def log_snr(self, level: Level) -> float:
        """Return ln(signal^2 / noise^2) at a level; infinite without noise, minus infinity without signal."""
        signal, noise = (float(value) for value in self.coefficients(self.level_tensor(level, 1)))
        if not noise:
            return inf
        return 2 * log(signal / noise) if signal else -inf

    def at(self, share: float) -> Level:
        """Return the level as noisy as the step at `share`, in [0, 1), of DDPM's linear schedule.

        Defaults are chosen as shares of that schedule, the paper's; other processes read equally noisy
        images.
        """
        return self.at_log_snr(_linear_log_snr(share))

    def check(self, levels: Iterable[Level]) -> tuple[Level, ...]:
        """Return `levels` sorted and without repetitions: int for steps, else float.

        Raises:
            DiffLensError: `levels` is empty, or one of them is outside the process or no whole step.
        """
        chosen = list(levels)
        if not chosen:
            raise DiffLensError(f"noise_steps is empty: the backbone has {self.describe_bounds()}")
        low, high = self.bounds
        outside = [level for level in chosen if not (isfinite(level) and low <= level <= high)]
        if outside:
            raise DiffLensError(
                f"noise step {listing(outside)} is outside the schedule: the backbone has "
                f"{self.describe_bounds()}"
            )
        if self.unit != "step":
            return tuple(sorted({float(level) for level in chosen}))
        if parts := [level for level in chosen if level != int(level)]:
            raise DiffLensError(
                f"noise step {listing(parts)} is no whole number: the backbone has {self.describe_bounds()}"
            )
        return tuple(sorted({int(level) for level in chosen}))

    def by_noise(self, levels: Iterable[Level]) -> dict[Level, float]:
        """Return the log-SNR by level, from the least to the most noise."""
        found = {level: self.log_snr(level) for level in levels}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def describe_bounds(self) -> str:
        """Return, for example, "noise steps 0 to 999"."""
        low, high = self.bounds
        names = {"step": "noise steps", "sigma": "noise levels sigma", "time": "times"}
        return f"{names[self.unit]} {low:g} to {high:g}"

    def _columns(self, level: Level | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal and noise, (B or 1, 1, 1, 1) each, in the type and on the device of `like`."""
        count = level.numel() if isinstance(level, Tensor) else 1
        signal, noise = self.coefficients(self.level_tensor(level, count, "cpu"))
        signal, noise = signal.reshape(-1, 1, 1, 1), noise.reshape(-1, 1, 1, 1)
        return signal.to(like.device, like.dtype), noise.to(like.device, like.dtype)


@cache
def _linear_log_snr(share: float) -> float:
    """Return the log-SNR of DDPM's linear schedule (Ho et al., 2020) at a share of its 1,000 steps."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    value = abar[int(1000 * share)]
    return float((value / (1 - value)).log())


def level_name(level: Level) -> str:
    """Return a level as a part of file names: five digits of a step, all decimals of another level."""
    return f"{level:05d}" if isinstance(level, int) else repr(level)


def bracketed(level: Level, log_snr: float | None) -> str:
    """Return a level and its log-SNR, for example "150 (1.2)"; the level alone for None."""
    return f"{level}" if log_snr is None else f"{level} ({log_snr_text(log_snr)})"


def in_words(log_snr: Mapping[Level, float | None]) -> str:
    """Return levels and their log-SNR for a sentence, for example "5, 20 (log-SNR 6.1, 3.2)".

    Args:
        log_snr: by level; the levels stand alone if one is None.
    """
    known = [log_snr_text(value) for value in log_snr.values() if value is not None]
    levels = listing(list(log_snr))
    return f"{levels} (log-SNR {listing(known)})" if len(known) == len(log_snr) else levels


def log_snr_text(value: float) -> str:
    """Return a log-SNR with one decimal."""
    if not isfinite(value):
        return "\u221e" if value > 0 else "-\u221e"
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0 makes -0.0 positive


def finite(value: float) -> float | None:
    """Return a log-SNR as JSON holds it: None if it is infinite."""
    return value if isfinite(value) else None


def rounded(value: float) -> float:
    """Return `value` with three significant digits."""
    return float(f"{value:.3g}")


def noise_ratio(log_snr: float) -> float:
    """Return noise / signal at a log-SNR."""
    return exp(-log_snr / 2)
