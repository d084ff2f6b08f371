"""Samplers of variance-preserving processes; all random numbers are functions of the image.

The T noise steps of a schedule are first respaced to the S visited ones, as Nichol and Dhariwal (2021) do,
here at equal distances down from T ("trailing", Lin et al., 2024). This gives a shorter schedule, whose abar
are those of the visited steps. A scheduler of diffusers walks it from S - 1 to 0 without skipping. For any S,
each of its steps therefore ends at exactly the next noise level of the network.
"""

from collections.abc import Callable
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from difflens.backbones.base import DiffusionBackbone
from difflens.choices import SamplerName
from difflens.errors import DiffLensError, counted, listing, require
from difflens.generation.base import DiffusionSampler, refuse_eta, refuse_pure_noise
from difflens.noise import Stream, seeded_noise
from difflens.processes.variance_preserving import VariancePreserving

_DEFAULT_STEPS = {"ddim": 50, "dpm-solver": 20}


class RespacedSampler(DiffusionSampler):
    """A sampler of a variance-preserving network.

    At each step it clips the predicted x_0 to [-1, 1] where x_0 is an image; latents have no such range.

    - `ddpm`: ancestral sampling (Ho et al., 2020), with the learned variance of the network (Nichol and
      Dhariwal, 2021), or else with the variance that its scheduler configuration names;
    - `ddim`: Song et al., 2021;
    - `dpm-solver`: DPM-Solver++ 2M (Lu et al., 2022).

    Args:
        backbone: a diffusion network. If its output has twice the channels of x_t, the second half is the
            learned variance.
        name: the kind of sampler.
        steps: number of noise steps to visit; None: 50 for ddim, 20 for dpm-solver (at most T), T for ddpm.
        eta: amount of noise that each step of ddim adds, in [0, 1]; 0 adds none.
        seed, compiled: as in `DiffusionSampler`.

    Attributes:
        timesteps: the visited noise steps, ascending; the last is the schedule's last.

    Raises:
        DiffLensError: the process preserves no variance, or its prediction or variance is not supported;
            `steps` exceeds its schedule; `eta` is outside [0, 1], or not 0 for another sampler than ddim.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        name: SamplerName = "ddim",
        steps: int | None = None,
        eta: float = 0.0,
        seed: int = 0,
        compiled: bool = False,
    ):
        super().__init__(backbone, seed, compiled)
        if not isinstance(backbone.process, VariancePreserving):
            raise DiffLensError(
                f"{name} draws from variance-preserving networks, and the process of {backbone.spec} is "
                f"{backbone.process.name}: choose the sampler own"
            )
        total = backbone.process.num_steps
        steps = min(_DEFAULT_STEPS.get(name, total), total) if steps is None else steps
        if not 1 <= steps <= total:
            raise DiffLensError(f"{counted(steps, 'sampling step')}: the schedule allows 1 to {total}")
        require(eta=(eta, 0, 1))
        if name != "ddim":
            refuse_eta(eta, name)
        refuse_pure_noise(backbone)
        if name == "ddpm" and backbone.process.config.get("variance_type") == "learned":
            raise DiffLensError(
                f"{backbone.spec} predicts its variance itself, not a share of a range: "
                "choose another sampler"
            )
        self.name, self.steps, self.calls = name, steps, steps
        fixed = backbone.out_channels == self.shape[0]
        self._large = fixed and self._variance_type().startswith("fixed_large")
        # DDPM is DDIM at eta = 1 with the noise predicted again from the clipped image: mean and variance
        # are the same (Song et al., 2021, section 4.1). DDIMScheduler takes the noise as an argument, which
        # DDPMScheduler does not.
        self.ancestral = name == "ddpm"
        self.eta = 1.0 if self.ancestral else eta
        self.timesteps = [round(total * k / steps) - 1 for k in range(1, steps + 1)]
        self._total = total
        self._abar = backbone.process.alphas_cumprod[self.timesteps]
        if name == "dpm-solver" or self.eta:
            # zero terminal SNR: their formulas divide by abar; diffusers takes this number, too
            self._abar = self._abar.where(self._abar > 0, 2.0**-24)
        self._scheduler = self._make_scheduler()

    def _draw(self, index: Tensor, watch: Callable[[], object]) -> Tensor:
        self._scheduler.set_timesteps(self.steps)
        x = self._start(index)
        for s in reversed(range(self.steps)):
            prediction, share = self._predict(x, self.timesteps[s])
            if self.name == "dpm-solver":
                x = self._scheduler.step(prediction, s, x).prev_sample
            else:
                # x_(s-1) = sqrt(abar_(s-1)) x_0 + direction to x_s + sigma noise (DDIM, equation 12)
                eta = self.eta if s else 0.0  # the last step adds no noise
                noise = None
                if eta:
                    stream = Stream.sampling(self._total, self.timesteps[s])
                    noise = seeded_noise(self.shape, index, stream, self.seed)
                    if self.ancestral:  # sigma, from the posterior's variance to the interpolated one
                        noise *= self._variance_ratio(s) ** (share / 2)
                x = self._scheduler.step(
                    prediction, s, x, eta, use_clipped_model_output=self.ancestral, variance_noise=noise
                ).prev_sample
            watch()
        return x

    def _predict(self, x: Tensor, t: int) -> tuple[Tensor, Tensor | float]:
        """Return the network's prediction for x_t, and the variance as a share in [0, 1].

        The share interpolates logarithms, from the posterior's variance (0) to beta (1), as in Nichol and
        Dhariwal (2021), equation 15.
        """
        dtype = self.backbone.dtype
        output = self._checked(self.backbone.denoise(x.to(dtype), t, compiled=self.compiled))
        channels = self.shape[0]
        if output.shape[1] == 2 * channels:
            prediction, learned = output.chunk(2, dim=1)
            return prediction, (learned + 1) / 2
        return output, float(self._large)

    def _variance_type(self) -> str:
        """Return the variance of ddpm's noise, of a network that predicts none.

        Raises:
            DiffLensError: it is not known.
        """
        named = self.backbone.process.config.get("variance_type") or "fixed_small"
        known = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
        if self.name == "ddpm" and named not in known:
            raise DiffLensError(
                f"{self.backbone.spec} predicts no variance, and its variance_type is {named}, not one of "
                f"{listing(known)}: choose the sampler ddim"
            )
        return str(named)

    def _variance_ratio(self, s: int) -> float:
        """Return beta divided by the posterior's variance at the visited step `s`."""
        return float((1 - self._abar[s]) / (1 - self._abar[s - 1]))

    def _make_scheduler(self) -> Any:
        common = {
            "num_train_timesteps": self.steps,
            "prediction_type": self.backbone.process.prediction,
            "timestep_spacing": "trailing",
        }
        in_pixels = self.backbone.autoencoder is None
        scheduler: Any
        if self.name == "dpm-solver":
            # dynamic thresholding with a maximum of 1 is clipping
            scheduler = DPMSolverMultistepScheduler(**common, thresholding=in_pixels, sample_max_value=1.0)
        else:
            scheduler = DDIMScheduler(**common, clip_sample=in_pixels)
        # abar is set in float64 and not computed from beta. With large steps, beta is closer to 1 than
        # float32 resolves, and the variance without the added noise is closer to 0. Images stay float32.
        scheduler.alphas_cumprod = self._abar
        return scheduler
