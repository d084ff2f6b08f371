"""The sampler `own`: a walk of the folder's own diffusers scheduler, step by step as in its pipeline."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor

from difflens.backbones.base import DiffusionBackbone
from difflens.errors import DiffLensError, counted
from difflens.generation.base import DiffusionSampler, refuse_pure_noise
from difflens.noise import Stream, draws

# Steps if none are named, by a part of the scheduler's name; others take 50.
_DEFAULT_STEPS = {"CMStochastic": 1, "LCM": 4, "TCD": 4}
_WHOLE_SCHEDULE = ("DDPMParallelScheduler", "DDPMScheduler", "ScoreSdeVeScheduler")

# These take a learned variance with the prediction; pipelines cut it off for all others.
_LEARN_VARIANCE = ("DDPMParallelScheduler", "DDPMScheduler")

# How schedulers fail at numbers of steps or fields that they cannot take.
_FAILURES = (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError)

# These take no network that predicts the image.
_NO_IMAGES = (
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
)

_OTHERS = "ddim, ddpm or dpm-solver"

# Networks whose pipeline shifts a flow's levels by the number of tokens.
_SHIFTED = ("FluxTransformer2DModel", "SD3Transformer2DModel")


class SchedulerSampler(DiffusionSampler):
    """A sampler that walks the scheduler in the backbone's folder: its class, with its configuration.

    Each step scales x_t, runs the network at the scheduler's time, and lets the scheduler step, as in the
    pipelines of diffusers without guidance. What a scheduler draws in its steps comes from one generator for
    each image. Its seed is a function of (seed, image), cut to the 32 bits that the generator reads.

    ScoreSdeVeScheduler corrects image by image: its step size is a mean over the batch that it is given. An
    image is then that of a pipeline's call for one image.

    Args:
        backbone: a network whose process has the configuration of a scheduler.
        steps: the scheduler's number of inference steps. None: the whole schedule for DDPM and ScoreSdeVe, 1
            for consistency models, 4 for LCM and TCD, else 50, or fewer if the schedule is shorter.
        seed, compiled: as in `DiffusionSampler`.

    Raises:
        DiffLensError: no scheduler belongs to the backbone; its scheduler goes from images to noise, draws
            what cannot be seeded by image, needs what its pipeline does not tell, or cannot step with what
            the network predicts; or `steps` does not fit.
    """

    name = "own"

    def __init__(
        self, backbone: DiffusionBackbone, steps: int | None = None, seed: int = 0, compiled: bool = False
    ):
        super().__init__(backbone, seed, compiled)
        self.config = dict(backbone.process.config)
        self.kind = str(self.config.get("_class_name", ""))
        self._check_kind()
        self.steps = self._default_steps() if steps is None else steps
        total = self.config["num_train_timesteps"] if backbone.process.unit == "step" else None
        # the first steps of PNDM are Runge-Kutta's
        least = 4 if self.kind == "PNDMScheduler" and not self.config.get("skip_prk_steps") else 1
        if self.steps < least or (total is not None and self.steps > total):
            allowed = f"it takes at least {least}"
            if total is not None:
                allowed = f"the schedule allows {least} to {total}"
            raise DiffLensError(f"{counted(self.steps, 'sampling step')}: {allowed}")
        with self._failures_named():
            times = self._new_scheduler().timesteps
            self.calls = len(times)
        self._check_times(times)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Return a context in which a failure of the scheduler becomes a DiffLensError that names it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as error:
            raise DiffLensError(
                f"{self.kind} of {self.backbone.spec} with {counted(self.steps, 'step')}: {error}"
            ) from error

    def _check_kind(self) -> None:
        """Raise a DiffLensError for schedulers that give no images, or not by image."""
        spec, kind = self.backbone.spec, self.kind
        if not kind:
            other = f": choose {_OTHERS}" if self.backbone.process.unit == "step" else ""
            raise DiffLensError(f"no file of {spec} names a scheduler for the sampler own{other}")
        if "Inverse" in kind:
            raise DiffLensError(f"{kind} of {spec} goes from images to noise: choose {_OTHERS}")
        if kind in _NO_IMAGES and self.backbone.process.prediction == "sample":
            raise DiffLensError(
                f"{kind} of {spec} takes no network that predicts the image (prediction_type sample): "
                f"choose {_OTHERS}"
            )
        if kind == "FlowMatchLCMScheduler" and self.config.get("scale_factors"):
            raise DiffLensError(
                f"{kind} of {spec} changes the size of the image between its steps (scale_factors), and no "
                "sampler draws from it"
            )
        if self.config.get("stochastic_sampling"):
            raise DiffLensError(
                f"{kind} of {spec} draws its noise for whole batches (stochastic_sampling): an image would "
                "depend on its batch, and no sampler draws from it"
            )
        if self.config.get("use_dynamic_shifting") and self._network not in _SHIFTED:
            raise DiffLensError(
                f"{kind} of {spec} shifts its levels by the size of the image (use_dynamic_shifting), and "
                f"how far is known of {' and '.join(_SHIFTED)} only, not of {self._network}"
            )
        if self._learns_variance and self.backbone.out_channels != 2 * self.shape[0]:
            raise DiffLensError(
                f"{kind} of {spec} wants a learned variance (variance_type {self.config['variance_type']}), "
                f"and the network predicts none: choose {_OTHERS}"
            )

    def _check_times(self, times: Tensor) -> None:
        """Raise a DiffLensError for times of the scheduler of which the network says nothing."""
        backbone, kind = self.backbone, self.kind
        learned = getattr(backbone.network.config, "time_embedding_type", None) == "learned"
        if learned and times.is_floating_point():
            raise DiffLensError(
                f"{kind} of {backbone.spec} tells fractions of steps, and the network knows whole ones "
                f"(time_embedding_type learned): choose {_OTHERS}"
            )
        if times.max() == backbone.process.bounds[1]:
            refuse_pure_noise(backbone)

    @property
    def _network(self) -> str:
        return type(self.backbone.network).__name__

    @property
    def _learns_variance(self) -> bool:
        return self.kind in _LEARN_VARIANCE and str(self.config.get("variance_type")).startswith("learned")

    def _default_steps(self) -> int:
        total = self.config.get("num_train_timesteps", 1000)
        if self.kind in _WHOLE_SCHEDULE:
            return int(total)
        default = next((steps for part, steps in _DEFAULT_STEPS.items() if part in self.kind), 50)
        return min(default, int(total))

    def _new_scheduler(self) -> Any:
        """Return the scheduler with its timesteps; a walk changes it."""
        changes: dict[str, Any] = {}
        if "variance_type" in self.config and self.kind not in _LEARN_VARIANCE:
            changes["variance_type"] = None  # these would keep three channels, where the variance is cut off
        scheduler = getattr(diffusers, self.kind).from_config(self.config, **changes)
        scheduler.set_timesteps(self.steps, **self._shift())
        if self.kind == "ScoreSdeVeScheduler":
            scheduler.set_sigmas(self.steps)
        return scheduler

    def _shift(self) -> dict[str, Any]:
        """Return what the pipelines of Flux and Stable Diffusion 3 add for their scheduler."""
        shift: dict[str, Any] = {}
        if self._network == "FluxTransformer2DModel":
            shift["sigmas"] = torch.linspace(1, 1 / self.steps, self.steps, dtype=torch.float64).tolist()
        if self.config.get("use_dynamic_shifting"):
            tokens = (self.backbone.image_size // self.backbone.blocks[0].stride) ** 2
            least, most = self.config["base_image_seq_len"], self.config["max_image_seq_len"]
            low, high = self.config["base_shift"], self.config["max_shift"]
            # a straight line through (least, low) and (most, high)
            shift["mu"] = low + (high - low) * (tokens - least) / (most - least)
        return shift

    def _draw(self, index: Tensor, watch: Callable[[], object]) -> Tensor:
        scheduler = self._new_scheduler()
        # on the CPU: diffusers then draws the same numbers for any device
        words = draws(Stream.SAMPLER_SEEDS, index, self.seed)[:, 0]
        generators = [torch.Generator().manual_seed(word) for word in words.tolist()]
        x = self._start(index) * getattr(scheduler, "init_noise_sigma", 1.0)
        if self.kind == "ScoreSdeVeScheduler":
            return self._walk_with_corrector(scheduler, x, generators, watch)
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
        parameters = inspect.signature(scheduler.step).parameters
        # as the pipelines, whose eta is 0
        usual = {"generator": generators, "eta": 0.0}
        given = {name: value for name, value in usual.items() if name in parameters}
        for t in scheduler.timesteps:
            output = self._predict(scaled(x, t), t)
            with self._failures_named():
                x = scheduler.step(output, t, x, **given).prev_sample
            watch()
        return x

    def _walk_with_corrector(
        self, scheduler: Any, x: Tensor, generators: list[torch.Generator], watch: Callable[[], object]
    ) -> Tensor:
        """Walk as ScoreSdeVePipeline (Song et al., 2021) and return the last mean, in about [0, 1]."""
        mean = x
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
            for _ in range(scheduler.config.correct_steps):
                score = self._predict(x, sigma)
                rows = zip(score.split(1), x.split(1), generators, strict=True)
                x = torch.cat([scheduler.step_correct(s, one, generator=g).prev_sample for s, one, g in rows])
            stepped = scheduler.step_pred(self._predict(x, sigma), t, x, generator=generators)
            x, mean = stepped.prev_sample, stepped.prev_sample_mean
            watch()
        return mean

    def _predict(self, scaled: Tensor, t: Tensor) -> Tensor:
        """Return what the scheduler takes of the network's output for a scaled x_t at its time."""
        backbone = self.backbone
        time = t.to(scaled.device).expand(len(scaled))
        if time.is_floating_point():
            time = time.float()
        fed = scaled.to(backbone.dtype), time, backbone.given(scaled)
        output = self._checked(backbone.output_of(fed, compiled=self.compiled))
        return output if self._learns_variance else output[:, : self.shape[0]]
