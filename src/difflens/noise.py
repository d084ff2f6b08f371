"""The forward process, and noise that depends on the image and not on the batch.

Noise is a pure function of (seed, image index, noise step, draw). It comes from the counter-based generator
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), evaluated in tensor
operations, and the Box-Muller transform. Features therefore do not depend on batch size, workers, processes
or device.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from math import isfinite, pi
from typing import Any

import torch
from torch import Tensor

from difflens.errors import DiffLensError, listing

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """All random streams of a seed, besides the noise of images at the noise steps 0 .. T - 1.

    A Philox counter has four words: (position in the noise, image, noise step, draw). A stream of the first
    group replaces the position, and noise has far fewer positions. A stream of the second group replaces the
    noise step. The values must never change: features and resumed runs depend on them.
    """

    # instead of the position: `draws`, `random_order`
    AUGMENTATION = 0xFFFFFFFF  # flips, crops and shifts of training images, and the views of SimCLR
    EPOCH_ORDER = 0xFFFFFFFE  # the order in which an epoch reads the training images
    SUBSET = 0xFFFFFFFD  # the images of a subset: few labels, or balanced classes
    FIDELITY_IMAGES = 0xFFFFFFFB  # the real images that generated ones are compared with
    KERNEL_IMAGES = 0xFFFFFFFA  # the images that the kernel distance reads

    # instead of the noise step: `seeded_noise`
    PERTURBATION = -1  # noise on the images of the reference distances
    MASK = 0  # the patches that MAE masks; its networks add no noise to images
    LATENT = 1  # the latents of BiGAN's generator; its networks add no noise to images

    @staticmethod
    def start(num_noise_steps: int) -> int:
        """Return the stream of a sampler's initial noise: the first step after those of the schedule."""
        return num_noise_steps

    @staticmethod
    def sampling(num_noise_steps: int, t: int) -> int:
        """Return the stream of the noise that a sampler adds at the noise step `t` > 0."""
        return num_noise_steps + t


VARIANCE_PRESERVING = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers whose network is fed sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise and told the step t.

Those that count in sigma (Euler, Heun, LMS, KDPM2) scale x_0 + sigma noise by 1 / sqrt(sigma^2 + 1) before
the network, which is the same. Fields that choose the steps of a sampler (`timestep_spacing`,
`steps_offset`, Karras' sigmas) change neither x_t nor the time of a step.
"""

# These put abar_T of a schedule with zero terminal SNR at 2^-24, so that sigma_T is finite.
_FLOORED = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)

# The forward process of other schedulers, by a part of their name, for the message that refuses them.
_OTHER_PROCESSES = {
    "CMStochasticIterative": "x_0 + sigma noise, scaled, and the time 250 ln sigma (consistency models)",
    "EDM": "x_0 + sigma noise, its input scaled by c_in, and the time ln(sigma) / 4 (EDM)",
    "Flow": "(1 - sigma) x_0 + sigma noise and the time 1000 sigma (flow matching)",
    "Ve": "x_0 + sigma noise and sigma itself (variance-exploding)",
}


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule (Ho et al., 2020): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.

    Attributes:
        alphas_cumprod: (T,) float64, abar_t for t = 0 .. T - 1, in (0, 1].
        config: the diffusers scheduler configuration of the schedule, for samplers and for saving.
    """

    alphas_cumprod: Tensor
    config: dict[str, object] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None) -> "NoiseSchedule":
        """Return the schedule of a diffusers scheduler configuration.

        It is computed in float64, like OpenAI's; diffusers computes in float32. Fields that the file leaves
        out have the defaults of its scheduler class.

        Args:
            config: without `_class_name`, that of a DDPM scheduler; None or empty: DDPM's linear schedule of
                1000 steps.

        Raises:
            DiffLensError: the scheduler is not known to be variance-preserving, or a field has an unknown
                value.
        """
        given = dict(config or {})
        fields = {**_defaults(str(given.get("_class_name", "DDPMScheduler"))), **given}
        betas = _betas(fields)
        if fields.get("rescale_betas_zero_snr"):
            floor = 2.0**-24 if fields.get("_class_name") in _FLOORED else 0.0
            abar = _with_zero_terminal_snr(torch.cumprod(1 - betas, dim=0), floor)
        else:
            abar = torch.cumprod(1 - betas, dim=0)
        names = ("beta_schedule", "beta_start", "beta_end")
        known = {name: fields[name] for name in names} | {"num_train_timesteps": len(betas)}
        return cls(abar, {**given, **known})

    @property
    def num_steps(self) -> int:
        """T, the number of noise steps."""
        return len(self.alphas_cumprod)

    def coefficients(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar_t) and sqrt(1 - abar_t), (B or 1, 1, 1, 1) each.

        Args:
            t: the noise step, one for all images or (B,) long.
            like: images (B, C, H, W), whose device and type the coefficients get.
        """
        steps = torch.as_tensor(t, device=self.alphas_cumprod.device)
        abar = self.alphas_cumprod[steps].reshape(-1, 1, 1, 1)
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        return signal.to(like.device, like.dtype), noise.to(like.device, like.dtype)

    def add_noise(self, images: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Return x_t, (B, C, H, W), of images in [-1, 1] with standard normal `noise`.

        Args:
            images, noise: (B, C, H, W).
            t: the noise step, one for all images or (B,) long.
        """
        signal, scale = self.coefficients(t, images)
        return signal * images + scale * noise


@cache
def _defaults(scheduler: str) -> dict[str, Any]:
    """Return the fields of a scheduler class of diffusers with their defaults; refuse unknown classes."""
    if scheduler not in VARIANCE_PRESERVING:
        process = next((text for part, text in _OTHER_PROCESSES.items() if part in scheduler), None)
        right = f"its network takes {process}" if process else "its forward process is not known"
        raise DiffLensError(
            f"{scheduler} cannot be read: {right}, and difflens noises images by the variance-preserving "
            f"schedules of {listing(VARIANCE_PRESERVING, len(VARIANCE_PRESERVING))}"
        )
    import diffusers  # takes seconds

    fields = inspect.signature(getattr(diffusers, scheduler).__init__).parameters.values()
    return {each.name: each.default for each in fields if each.default is not inspect.Parameter.empty}


def _betas(fields: Mapping[str, Any]) -> Tensor:
    """Return beta_t, (T,) float64, of a scheduler's fields."""
    scheduler = fields.get("_class_name", "the scheduler")
    prediction = fields.get("prediction_type", "epsilon")
    if fields.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise DiffLensError(
            f"{scheduler} cannot be read with flow sigmas: its network takes {_OTHER_PROCESSES['Flow']}"
        )
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise DiffLensError(
            f"{scheduler} has the unknown prediction_type {prediction!r}; known are epsilon, "
            "v_prediction and sample"
        )
    name, trained = fields["beta_schedule"], fields.get("trained_betas")
    steps, start, end = (fields[key] for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if trained is not None:
        betas = torch.as_tensor(trained, dtype=torch.float64).flatten()
    else:
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 10**6:
            raise DiffLensError(
                f"num_train_timesteps is {steps!r}; it must be a whole number from 1 to 1,000,000"
            )
        for key, value in (("beta_start", start), ("beta_end", end)):
            if not isinstance(value, int | float) or not isfinite(value) or not 0 <= value < 1:
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


def seeded_noise(
    shape: tuple[int, ...], index: Tensor, t: int | Tensor, seed: int, draw: int | Tensor = 0
) -> Tensor:
    """Return standard normal noise, (B, *shape) float32, on the device of `index`.

    Args:
        shape: shape of one image, (C, H, W), or of one latent.
        index: numbers of the images in their data set, (B,) long.
        t: the noise step, one for all images or (B,) long; or a stream that replaces it.
        seed: 64-bit seed of the run.
        draw: number of the independent noise sample: 0 for evaluation, the epoch in training.
    """
    count = torch.Size(shape).numel()
    words = torch.arange((count + 3) // 4, device=index.device)
    # one Philox call gives four words, which are two Box-Muller pairs
    uniform = philox((words, index[:, None], _column(t, index), _column(draw, index)), seed)
    # 24 bits: u in (0, 1) is exact in float32 and never 0
    u = ((uniform >> 8).float() + 0.5) * 2.0**-24
    radius = torch.sqrt(-2 * torch.log(u[..., 0::2]))
    angle = 2 * pi * u[..., 1::2]
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normal.flatten(1)[:, :count].unflatten(1, shape)


def draws(stream: Stream, index: Tensor, seed: int, epoch: int = 0) -> Tensor:
    """Return four random words for each image, (B, 4) long in [0, 2**32).

    They are a pure function of (stream, seed, epoch, index).

    Args:
        stream: one of the first group.
        index: numbers of the images in their data set, (B,) long.
        seed: 64-bit seed of the run.
        epoch: number of the epoch, from 0.
    """
    zero = torch.zeros_like(index)
    return philox((zero + stream, index, zero + epoch, zero), seed)


def random_order(stream: Stream, index: Tensor, seed: int, epoch: int = 0) -> Tensor:
    """Return the rows of `index`, (N,) long, in a random order; arguments as in `draws`."""
    keys = draws(stream, index, seed, epoch)
    return (keys[:, 0] << 31 | keys[:, 1] >> 1).argsort(stable=True)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Return four 32-bit words for each counter, (..., 4) int64: Philox4x32-10 (Salmon et al., 2011).

    Args:
        counter: four broadcastable int64 tensors, whose low 32 bits are used.
        seed: the 64-bit key.
    """
    c0, c1, c2, c3 = (word & _MASK for word in torch.broadcast_tensors(*counter))
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # the product's bits are right in two's complement even where int64 overflows
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _MASK, (p1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _column(value: int | Tensor, index: Tensor) -> Tensor:
    return torch.as_tensor(value, device=index.device, dtype=torch.long).reshape(-1, 1)
