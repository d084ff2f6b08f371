"""Samplers: from noise to images by diffusers' schedulers, every random number a function of the image.

A schedule of T noise steps is first cut down to the S that are visited, as Nichol and Dhariwal (2021) do: a schedule of
its own, whose abar are those of the visited steps. The scheduler walks it from S - 1 to 0 without skipping, so that for
any S it steps to exactly the noise level that the network is asked about next.
"""

from collections.abc import Callable
from typing import Any, get_args

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from difflens.backbones.base import PREDICTIONS, Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.choices import SamplerName
from difflens.errors import DiffLensError, require
from difflens.noise import Stream, seeded_noise

_USUAL_STEPS = {"ddim": 50, "dpm-solver": 20}


class Sampler:
    """Draws images from a backbone; the predicted image is clipped to [-1, 1] at every step.

    - `ddpm`: ancestral sampling (Ho et al., 2020), with the variance that the network has learned (Nichol and Dhariwal,
      2021), and else with the one that its scheduler configuration names;
    - `ddim`: Song et al., 2021;
    - `dpm-solver`: DPM-Solver++ 2M (Lu et al., 2022).

    Args:
        backbone: where its channels are twice the image's, the second half is the learned variance.
        name: of the sampler.
        steps: how many of the schedule's; None: 50 for ddim, 20 for dpm-solver, as far as there are so many, and all of
            them for ddpm.
        eta: of ddim, 0 to 1: how much noise each step adds; 0 adds none.
        seed: of all noise.
        compiled: run the network compiled, as `Extractor.compiled` says.

    Raises:
        DiffLensError: the backbone has no denoiser or predicts what is not known here, `steps` is not within its
            schedule, or `eta` is not within 0 to 1 or meant for another sampler than ddim.
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
        total = backbone.num_noise_steps
        steps = min(_USUAL_STEPS.get(name, total), total) if steps is None else steps
        if not 1 <= steps <= total:
            raise DiffLensError(f"{steps} sampling steps: the schedule allows 1 to {total}")
        require(eta=(eta, 0, 1))
        if eta and name != "ddim":
            raise DiffLensError(f"eta is {eta:g}, and {name} has none: it is for the sampler ddim")
        if backbone.prediction_type not in PREDICTIONS:
            raise DiffLensError(
                f"{backbone.spec} predicts {backbone.prediction_type!r}; known are {', '.join(PREDICTIONS)}"
            )
        if name == "ddpm" and backbone.schedule.config.get("variance_type") == "learned":
            raise DiffLensError(
                f"{backbone.spec} predicts its variance itself, not its place in a range: choose another sampler"
            )
        self.backbone, self.name, self.steps, self.seed = backbone, name, steps, seed
        self.compiled = compiled
        # DDPM is DDIM at eta = 1 with noise predicted anew from the clipped image: the same mean, the same variance
        # (Song et al., 2021, section 4.1). Its scheduler, unlike DDPMScheduler, lets its caller give the noise.
        self.ancestral = name == "ddpm"
        self.eta = 1.0 if self.ancestral else eta
        self.timesteps = [round(total * k / steps) - 1 for k in range(1, steps + 1)]
        """The noise steps that are visited, from the cleanest; the last is the schedule's last."""
        self.shape = (backbone.in_channels, backbone.image_size, backbone.image_size)
        self._abar = backbone.schedule.alphas_cumprod[self.timesteps]
        self._scheduler = self._make_scheduler()

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        """The images of these numbers.

        Image k depends on (seed, k) alone, but for last bits: kernels choose their order of summation by the size of
        the batch, so image k is the same to the bit only at the same place of a batch of the same size.

        Args:
            index: (B,) long, on the backbone's device.
            watch: is called after every step.

        Returns:
            (B, C, H, W) float32 in [-1, 1].

        Raises:
            DiffLensError: the network's output is of another shape than an image, or not finite.
        """
        self._scheduler.set_timesteps(self.steps)
        total = self.backbone.num_noise_steps
        x = seeded_noise(self.shape, index, Stream.start(total), self.seed)
        for place in reversed(range(self.steps)):
            prediction, share = self._predict(x, self.timesteps[place])
            if self.name == "dpm-solver":
                x = self._scheduler.step(prediction, place, x).prev_sample
            else:
                eta = self.eta if place else 0.0  # the last step adds no noise
                noise = None
                if eta:
                    stream = Stream.sampling(total, self.timesteps[place])
                    noise = seeded_noise(self.shape, index, stream, self.seed)
                    if self.ancestral:
                        noise *= self._spread(place) ** (share / 2)
                x = self._scheduler.step(
                    prediction, place, x, eta, use_clipped_model_output=self.ancestral, variance_noise=noise
                ).prev_sample
            watch()
        if not x.isfinite().all():
            raise DiffLensError(
                f"{self.backbone.spec} gives images that are not finite: use --precision float32 or bfloat16"
            )
        return x.clamp(-1, 1)

    def _predict(self, x: Tensor, t: int) -> tuple[Tensor, Tensor | float]:
        """The network's prediction, and where between the posterior's variance (0) and beta (1) the variance is.

        The place is on the scale of logarithms, as networks with learned variance say it.
        """
        dtype = next(self.backbone.parameters()).dtype
        output = self.backbone.denoise(x.to(dtype), t, compiled=self.compiled).float()
        channels = self.shape[0]
        if output.shape[1] == 2 * channels:
            prediction, learned = output.chunk(2, dim=1)
            return prediction, (learned + 1) / 2
        if output.shape != x.shape:
            raise DiffLensError(
                f"{self.backbone.spec} cannot generate: it makes {output.shape[1]} channels out of {channels}"
            )
        named = str(self.backbone.schedule.config.get("variance_type"))
        return output, 1.0 if named.startswith("fixed_large") else 0.0

    def _spread(self, place: int) -> float:
        """beta over the posterior's variance."""
        return float((1 - self._abar[place]) / (1 - self._abar[place - 1]))

    def _make_scheduler(self) -> Any:
        common = {
            "num_train_timesteps": self.steps,
            "prediction_type": self.backbone.prediction_type,
            "timestep_spacing": "trailing",
        }
        scheduler: Any
        if self.name == "dpm-solver":
            # a threshold that can only be 1 clips
            scheduler = DPMSolverMultistepScheduler(**common, thresholding=True, sample_max_value=1.0)
        else:
            scheduler = DDIMScheduler(**common, clip_sample=True)
        # In float64, and not by way of beta: large steps bring it, and what is left of the variance without the
        # noise that is added, nearer to 1 and to 0 than float32 can tell. Images stay float32.
        scheduler.alphas_cumprod = self._abar
        return scheduler


class OnePassSampler:
    """Draws images from a generator that makes them of latents in one pass; the interface of `Sampler`.

    Args:
        backbone: has such a generator.
        seed: of all latents.
    """

    name = "one pass"
    steps = 1

    def __init__(self, backbone: BiGANBackbone, seed: int = 0):
        self.backbone, self.seed = backbone, seed

    @torch.inference_mode()
    def __call__(self, index: Tensor, watch: Callable[[], object] = lambda: None) -> Tensor:
        """As of `Sampler`: image k depends on (seed, k) alone, but for last bits."""
        latents = seeded_noise((self.backbone.generator.config.latent,), index, Stream.LATENT, self.seed)
        dtype = next(self.backbone.parameters()).dtype
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
    """What draws from `backbone`; arguments as of `Sampler`.

    Raises:
        DiffLensError: as `Sampler`, or the backbone needs no sampler and one is described.
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
    """Generate images; see `Sampler` for the samplers and their steps.

    Image k depends on (seed, k) alone: not on `count` or `batch_size`, but for last bits.

    Returns:
        (count, C, H, W) float32 in [-1, 1], on the CPU.

    Raises:
        DiffLensError: as `make_sampler`, or `count` or `batch_size` is less than 1.
    """
    require(count=(count, 1, None), batch_size=(batch_size, 1, None))
    draw = make_sampler(backbone, sampler, steps, eta, seed)
    numbers = torch.arange(count, device=backbone.device)
    return torch.cat([draw(index).cpu() for index in numbers.split(batch_size)])
