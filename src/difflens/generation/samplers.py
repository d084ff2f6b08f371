"""Samplers: from noise to images by diffusers' schedulers; all random numbers are functions of the image.

The T noise steps of a schedule are first respaced to the S visited ones, after Nichol and Dhariwal (2021).
This gives a shorter schedule, whose abar are those of the visited steps. The scheduler walks it from S - 1 to
0 without skipping. For any S, each of its steps therefore ends at exactly the next noise level of the
network.
"""

from collections.abc import Callable
from typing import Any, get_args

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.choices import SamplerName
from difflens.errors import DiffLensError, require
from difflens.noise import Stream, seeded_noise
from difflens.processes.variance_preserving import VariancePreserving

_DEFAULT_STEPS = {"ddim": 50, "dpm-solver": 20}


class Sampler:
    """A sampler that draws images from a backbone.

    It clips the predicted image to [-1, 1] at each step.

    - `ddpm`: ancestral sampling (Ho et al., 2020), with the learned variance of the network (Nichol and
      Dhariwal, 2021), or else with the variance that its scheduler configuration names;
    - `ddim`: Song et al., 2021;
    - `dpm-solver`: DPM-Solver++ 2M (Lu et al., 2022).

    Args:
        backbone: a diffusion network. If it has twice the channels of an image, the second half is the
            learned variance.
        name: the kind of sampler.
        steps: number of noise steps to visit; None: 50 for ddim, 20 for dpm-solver (at most T), T for ddpm.
        eta: amount of noise that each step of ddim adds, in [0, 1]; 0 adds none.
        seed: seed of all noise.
        compiled: run the network compiled, as in `Extractor.compiled`.

    Attributes:
        shape: (C, H, W) of an image.
        timesteps: the visited noise steps, ascending; the last is the schedule's last.

    Raises:
        DiffLensError: the backbone is no diffusion network, or its prediction or variance is not supported;
            `steps` exceeds its schedule; `eta` is outside [0, 1], or not 0 for another sampler than ddim.
    """

    def __init__(
        self,
        backbone: Backbone,
        name: SamplerName = "ddim",
        steps: int | None = None,
        eta: float = 0.0,
        seed: int = 0,
        compiled: bool = False,
    ):
        if not isinstance(backbone, DiffusionBackbone):
            raise DiffLensError(f"{backbone.spec} cannot generate: it is no diffusion network")
        if name not in get_args(SamplerName):
            raise DiffLensError(f"no sampler {name!r}; there are {', '.join(get_args(SamplerName))}")
        if not isinstance(backbone.process, VariancePreserving):
            raise DiffLensError(f"{name} draws from variance-preserving networks only")
        total = backbone.process.num_steps
        steps = min(_DEFAULT_STEPS.get(name, total), total) if steps is None else steps
        if not 1 <= steps <= total:
            raise DiffLensError(f"{steps} sampling steps: the schedule allows 1 to {total}")
        require(eta=(eta, 0, 1))
        if eta and name != "ddim":
            raise DiffLensError(f"eta is {eta:g}, and {name} has none: it is for the sampler ddim")
        if backbone.process.prediction == "epsilon" and not float(backbone.process.alphas_cumprod[-1]):
            raise DiffLensError(
                f"{backbone.spec} predicts noise, and its last step is pure noise (zero terminal SNR): no "
                "image follows from it"
            )
        if name == "ddpm" and backbone.process.config.get("variance_type") == "learned":
            raise DiffLensError(
                f"{backbone.spec} predicts its variance itself, not a share of a range: "
                "choose another sampler"
            )
        self.backbone, self.name, self.steps, self.seed = backbone, name, steps, seed
        self.compiled = compiled
        # DDPM is DDIM at eta = 1 with the noise predicted again from the clipped image: mean and variance
        # are the same (Song et al., 2021, section 4.1). DDIMScheduler takes the noise as an argument, which
        # DDPMScheduler does not.
        self.ancestral = name == "ddpm"
        self.eta = 1.0 if self.ancestral else eta
        self.timesteps = [round(total * k / steps) - 1 for k in range(1, steps + 1)]
        self.shape = backbone.input_shape
        self._abar = backbone.process.alphas_cumprod[self.timesteps]
        self._scheduler = self._make_scheduler()

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        """Return the images with these numbers, (B, C, H, W) float32 in [-1, 1].

        Image k depends on (seed, k) alone, except for its last bits. Kernels choose their order of summation
        by the size of the batch: image k is bit-equal at the same position of a batch of the same size.

        Args:
            index: numbers of the images, (B,) long, on the backbone's device.
            watch: a function that is called after each step.

        Raises:
            DiffLensError: the network's output has another shape than an image, or is not finite.
        """
        self._scheduler.set_timesteps(self.steps)
        total = self.backbone.process.num_steps
        x = seeded_noise(self.shape, index, Stream.start(total), self.seed)
        for s in reversed(range(self.steps)):
            prediction, share = self._predict(x, self.timesteps[s])
            if self.name == "dpm-solver":
                x = self._scheduler.step(prediction, s, x).prev_sample
            else:
                # x_(s-1) = sqrt(abar_(s-1)) x_0 + direction to x_s + sigma noise (DDIM, equation 12)
                eta = self.eta if s else 0.0  # the last step adds no noise
                noise = None
                if eta:
                    stream = Stream.sampling(total, self.timesteps[s])
                    noise = seeded_noise(self.shape, index, stream, self.seed)
                    if self.ancestral:  # sigma, from the posterior's variance to the interpolated one
                        noise *= self._variance_ratio(s) ** (share / 2)
                x = self._scheduler.step(
                    prediction, s, x, eta, use_clipped_model_output=self.ancestral, variance_noise=noise
                ).prev_sample
            watch()
        if not x.isfinite().all():
            raise DiffLensError(
                f"{self.backbone.spec} gives images that are not finite: use --precision float32 or bfloat16"
            )
        return x.clamp(-1, 1)

    def _predict(self, x: Tensor, t: int) -> tuple[Tensor, Tensor | float]:
        """Return the network's prediction for x_t, and the variance as a share in [0, 1].

        The share interpolates logarithms, from the posterior's variance (0) to beta (1), as in Nichol and
        Dhariwal (2021), equation 15.
        """
        dtype = self.backbone.dtype
        output = self.backbone.denoise(x.to(dtype), t, compiled=self.compiled).float()
        channels = self.shape[0]
        if output.shape[1] == 2 * channels:
            prediction, learned = output.chunk(2, dim=1)
            return prediction, (learned + 1) / 2
        if output.shape != x.shape:
            raise DiffLensError(
                f"{self.backbone.spec} cannot generate: it makes {output.shape[1]} channels out of {channels}"
            )
        named = str(self.backbone.process.config.get("variance_type"))
        return output, 1.0 if named.startswith("fixed_large") else 0.0

    def _variance_ratio(self, s: int) -> float:
        """Return beta divided by the posterior's variance at the visited step `s`."""
        return float((1 - self._abar[s]) / (1 - self._abar[s - 1]))

    def _make_scheduler(self) -> Any:
        common = {
            "num_train_timesteps": self.steps,
            "prediction_type": self.backbone.process.prediction,
            "timestep_spacing": "trailing",
        }
        scheduler: Any
        if self.name == "dpm-solver":
            # dynamic thresholding with a maximum of 1 is clipping
            scheduler = DPMSolverMultistepScheduler(**common, thresholding=True, sample_max_value=1.0)
        else:
            scheduler = DDIMScheduler(**common, clip_sample=True)
        # abar is set in float64 and not computed from beta. With large steps, beta is closer to 1 than
        # float32 resolves, and the variance without the added noise is closer to 0. Images stay float32.
        scheduler.alphas_cumprod = self._abar
        return scheduler


class OnePassSampler:
    """A sampler for a generator from latents to images in one pass, with the interface of `Sampler`.

    Args:
        backbone: a backbone with a generator.
        seed: seed of all latents.
    """

    name = "one pass"
    steps = 1

    def __init__(self, backbone: BiGANBackbone, seed: int = 0):
        self.backbone, self.seed = backbone, seed

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        """Return the images with these numbers; arguments, result and errors as in `Sampler.__call__`."""
        latents = seeded_noise((self.backbone.generator.config.latent,), index, Stream.LATENT, self.seed)
        dtype = self.backbone.dtype
        images = self.backbone.generator(latents.to(dtype)).float()
        watch()
        if not images.isfinite().all():
            raise DiffLensError(
                f"{self.backbone.spec} gives images that are not finite: use --precision float32"
            )
        return images


def make_sampler(
    backbone: Backbone,
    name: SamplerName = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    compiled: bool = False,
) -> Sampler | OnePassSampler:
    """Return the sampler for `backbone`; arguments as in `Sampler`.

    Raises:
        DiffLensError: as in `Sampler`; or options of a sampler are given for a backbone that needs none.
    """
    if not isinstance(backbone, BiGANBackbone):
        return Sampler(backbone, name, steps, eta, seed, compiled)
    if steps is not None or name != "ddim" or eta:
        raise DiffLensError(
            f"{backbone.spec} makes an image in one pass: leave out --sampler, --steps and --eta"
        )
    return OnePassSampler(backbone, seed)


def sample(
    backbone: Backbone,
    count: int,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    *,
    sampler: SamplerName = "ddim",
    eta: float = 0.0,
) -> Tensor:
    """Generate images, (count, C, H, W) float32 in [-1, 1], on the CPU.

    Image k depends on (seed, k) alone, except for its last bits: not on `count` or `batch_size`.

    Args:
        backbone: a backbone that `generates`.
        count: number of images.
        steps, seed, sampler, eta: as in `Sampler`.
        batch_size: images that are generated at a time.

    Raises:
        DiffLensError: as in `make_sampler`; or `count` or `batch_size` is less than 1.
    """
    require(count=(count, 1, None), batch_size=(batch_size, 1, None))
    draw = make_sampler(backbone, sampler, steps, eta, seed)
    numbers = torch.arange(count, device=backbone.device)
    return torch.cat([draw(index).cpu() for index in numbers.split(batch_size)])
