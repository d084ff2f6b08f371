"""Every scheduler class of diffusers: its forward process is computed as diffusers does, or it is refused by
name."""

import inspect
from typing import Any

import diffusers
import pytest
import torch

from difflens import DiffLensError, NoiseSchedule
from difflens.noise import VARIANCE_PRESERVING

SCHEDULERS = sorted(
    name
    for name, kind in inspect.getmembers(diffusers, inspect.isclass)
    if name.endswith("Scheduler") and not name.startswith("Flax")
)
PROBED = (0, 1, 10, 250, 700, 999)
SIGMA_SPACE = ("Euler", "Heun", "LMS", "KDPM2")


def made(name: str, **fields: Any) -> tuple[Any, NoiseSchedule]:
    """A scheduler of diffusers, and the schedule that is read from its saved configuration."""
    scheduler = getattr(diffusers, name)(**fields)
    return scheduler, NoiseSchedule.from_config({"_class_name": name, **scheduler.config})


def network_input(scheduler: Any, t: int, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The input of diffusers' network at step t: noised images, scaled where the scheduler counts in
    sigma."""
    if any(part in type(scheduler).__name__ for part in SIGMA_SPACE):
        sigma = ((1 - scheduler.alphas_cumprod[t]) / scheduler.alphas_cumprod[t]) ** 0.5
        return (images + sigma * noise) / (sigma**2 + 1) ** 0.5
    signal = scheduler.alphas_cumprod[t] ** 0.5
    return signal * images + (1 - scheduler.alphas_cumprod[t]) ** 0.5 * noise


def assert_equal(scheduler: Any, schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(2, 3, 4, 4, generator=generator)
    for t in PROBED:
        expected = network_input(scheduler, t, images, noise)
        torch.testing.assert_close(schedule.add_noise(images, t, noise), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_class_is_computed_or_refused(name: str) -> None:
    if name in VARIANCE_PRESERVING:
        assert_equal(*made(name))
    else:
        with pytest.raises(DiffLensError, match=f"{name} cannot be read"):
            NoiseSchedule.from_config({"_class_name": name})


def test_every_known_class_exists() -> None:
    assert {*VARIANCE_PRESERVING} <= {*SCHEDULERS}


@pytest.mark.parametrize("name", [name for name in VARIANCE_PRESERVING if "Inverse" not in name])
def test_the_first_step_of_a_sampler_is_fed_as_here(name: str) -> None:
    """diffusers' own add_noise and scale_model_input at one of the sampler's steps."""
    scheduler, schedule = made(name)
    scheduler.set_timesteps(4 if name == "LCMScheduler" else 10)
    t = scheduler.timesteps[2]
    images, noise = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
    noised = scheduler.add_noise(images, noise, t[None])
    # Euler, Heun, LMS and KDPM2 look the step up where a sampler stands
    fed = scheduler.scale_model_input(noised, t)
    torch.testing.assert_close(schedule.add_noise(images, round(float(t)), noise), fed, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_beta_schedules(schedule: str) -> None:
    assert_equal(*made("DDPMScheduler", beta_schedule=schedule))


def test_trained_betas() -> None:
    betas = torch.linspace(1e-3, 0.05, 1000).tolist()
    assert_equal(*made("DDIMScheduler", trained_betas=betas))


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_zero_terminal_snr(name: str) -> None:
    if "rescale_betas_zero_snr" not in inspect.signature(getattr(diffusers, name).__init__).parameters:
        pytest.skip(f"{name} has no such field")
    scheduler, schedule = made(name, rescale_betas_zero_snr=True)
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, atol=2e-6, rtol=1e-5
    )
    assert float(schedule.alphas_cumprod[-1]) == float(scheduler.alphas_cumprod[-1])


def test_fields_that_a_file_leaves_out_are_the_classes_own() -> None:
    """Heun's schedule begins at 0.00085, DDPM's at 0.0001."""
    assert_equal(
        diffusers.HeunDiscreteScheduler(), NoiseSchedule.from_config({"_class_name": "HeunDiscreteScheduler"})
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_schedule": "exotic"}, "unknown noise schedule 'exotic'"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None"),
        ({"num_train_timesteps": -3}, "num_train_timesteps is -3"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'"),
        ({"beta_start": float("nan")}, "beta_start is nan"),
        ({"beta_end": "0.02"}, "beta_end is '0.02'"),
        ({"beta_end": 1.5}, "beta_end is 1.5"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas must be numbers"),
        ({"trained_betas": []}, "trained_betas must be numbers"),
        ({"prediction_type": "velocity"}, "unknown prediction_type 'velocity'"),
        ({"prediction_type": "flow_prediction"}, "flow sigmas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow sigmas"),
        ({"_class_name": "EDMEulerScheduler"}, r"EDMEulerScheduler cannot be read: .*ln\(sigma\) / 4"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"\(1 - sigma\) x_0"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "250 ln sigma"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "variance-exploding"),
        ({"_class_name": "SomebodysScheduler"}, "its forward process is not known"),
    ],
)
def test_what_cannot_be_read_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        NoiseSchedule.from_config(fields)
