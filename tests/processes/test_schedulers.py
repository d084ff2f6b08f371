"""Every scheduler class of diffusers: its process is that of diffusers, or it is refused by name."""

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from difflens import DiffLensError, process_of
from difflens.processes.base import Level, NoiseProcess
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.schedulers import VARIANCE_PRESERVING, known_schedulers

DOCS = Path(__file__).parents[2] / "docs" / "schedulers.md"
SCHEDULERS = sorted(
    name
    for name, kind in inspect.getmembers(diffusers, inspect.isclass)
    if name.endswith("Scheduler") and not name.startswith("Flax")
)
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
PROBED = (0, 1, 10, 250, 700, 999)
SIGMA_SPACE = ("Euler", "Heun", "LMS", "KDPM2")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
SIGMAS = (*EDM, "CMStochasticIterativeScheduler")


def made(name: str, **fields: Any) -> tuple[Any, Any]:
    """A scheduler of diffusers, and the process that is read from its saved configuration."""
    scheduler = getattr(diffusers, name)(**fields)
    return scheduler, process_of({"_class_name": name, **scheduler.config})


def images_and_noise() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    return images, torch.randn(2, 3, 4, 4, generator=generator)


def fed(process: NoiseProcess, images: Tensor, noise: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The network's input and time at one level."""
    levels = process.level_tensor(level, len(images))
    x_t = process.add_noise(images, level, noise)
    return process.network_input(x_t, levels), process.network_time(levels).float()


def network_input(scheduler: Any, t: int, images: Tensor, noise: Tensor) -> Tensor:
    """The input of diffusers' network at step t: noised images, scaled where the scheduler counts in
    sigma."""
    if any(part in type(scheduler).__name__ for part in SIGMA_SPACE):
        sigma = ((1 - scheduler.alphas_cumprod[t]) / scheduler.alphas_cumprod[t]) ** 0.5
        return (images + sigma * noise) / (sigma**2 + 1) ** 0.5
    signal = scheduler.alphas_cumprod[t] ** 0.5
    return signal * images + (1 - scheduler.alphas_cumprod[t]) ** 0.5 * noise


def assert_preserving(scheduler: Any, process: NoiseProcess) -> None:
    images, noise = images_and_noise()
    for t in PROBED:
        entering, time = fed(process, images, noise, t)
        expected = network_input(scheduler, t, images, noise)
        torch.testing.assert_close(entering, expected, atol=2e-5, rtol=2e-5)
        assert time.tolist() == [t, t]


def assert_sampler_agrees(name: str, **fields: Any) -> None:
    """The scheduler's own noise, input scale and time at each step of its sampler, in sigma or time."""
    scheduler, process = made(name, **fields)
    images, noise = images_and_noise()
    scheduler.set_timesteps(7)
    sigmas = scheduler.sigmas.tolist()
    for number, t in enumerate(scheduler.timesteps):
        # diffusers' samplers move on by steps, so that the scheduler is made to stand at this one
        scheduler._step_index = number
        level = sigmas[number]
        if hasattr(scheduler, "scale_noise"):
            noised = level * noise + (1 - level) * images  # scale_noise looks the same sigma up by its time
            expected = noised
        else:
            noised = images + level * noise
            expected = scheduler.scale_model_input(noised, t)
        entering, time = fed(process, images, noise, level)
        torch.testing.assert_close(process.add_noise(images, level, noise), noised, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entering, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(time, t.float().expand(2), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_class_is_computed_or_refused(name: str) -> None:
    if name in VARIANCE_PRESERVING:
        assert_preserving(*made(name))
    elif name in (*SIGMAS, *FLOW):
        assert_sampler_agrees(name)
    elif name == "ScoreSdeVeScheduler":
        assert_sampler_of_ve()
    else:
        with pytest.raises(DiffLensError, match=f"{name} cannot be read"):
            process_of({"_class_name": name})


def test_every_known_class_exists() -> None:
    assert {*known_schedulers()} <= {*SCHEDULERS}


@pytest.mark.parametrize("name", [name for name in VARIANCE_PRESERVING if "Inverse" not in name])
def test_the_first_step_of_a_sampler_is_fed_as_here(name: str) -> None:
    """diffusers' own add_noise and scale_model_input at one of the sampler's steps."""
    scheduler, process = made(name)
    scheduler.set_timesteps(4 if name == "LCMScheduler" else 10)
    t = scheduler.timesteps[2]
    images, noise = torch.rand(1, 3, 4, 4) * 2 - 1, torch.randn(1, 3, 4, 4)
    noised = scheduler.add_noise(images, noise, t[None])
    # Euler, Heun, LMS and KDPM2 look the step up where a sampler stands
    expected = scheduler.scale_model_input(noised, t)
    torch.testing.assert_close(
        process.add_noise(images, round(float(t)), noise), expected, atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("EDMEulerScheduler", {"sigma_data": 1.0}),
        ("EDMEulerScheduler", {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 3.0}),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.7}),
        ("CMStochasticIterativeScheduler", {"sigma_data": 0.3, "sigma_max": 60.0, "rho": 5.0}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}),
        ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_fields_of_other_processes(name: str, fields: dict[str, Any]) -> None:
    assert_sampler_agrees(name, **fields)


def assert_sampler_of_ve() -> None:
    """The pipeline of NCSN++ noises images in 0 to 1, feeds them as they are, and tells sigma."""
    scheduler, process = made("ScoreSdeVeScheduler")
    images, noise = images_and_noise()
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    for step in (0, 20, 49):
        sigma = float(scheduler.discrete_sigmas[step])
        noised = scheduler.add_noise((images + 1) / 2, noise, torch.tensor([step, step]))
        entering, time = fed(process, images, noise, sigma)
        torch.testing.assert_close(entering, scheduler.scale_model_input(noised), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(time, torch.tensor([sigma, sigma]))
    torch.testing.assert_close(process.to_images((images + 1) / 2), images)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_beta_schedule_of_every_class(name: str, schedule: str) -> None:
    """As diffusers computes it, or refused where diffusers' class has no such schedule."""
    try:
        scheduler, process = made(name, beta_schedule=schedule)
    except NotImplementedError:
        with pytest.raises(
            DiffLensError,
            match=f"beta_schedule is '{schedule}', an unknown noise schedule: {name} has linear, ",
        ):
            process_of({"_class_name": name, "beta_schedule": schedule})
        return
    torch.testing.assert_close(process.alphas_cumprod.float(), scheduler.alphas_cumprod, atol=2e-6, rtol=1e-4)
    assert_preserving(scheduler, process)


def test_the_schedules_of_single_classes_are_read() -> None:
    for name, schedule in (("DDPMScheduler", "laplace"), ("HeunDiscreteScheduler", "exp")):
        process = process_of({"_class_name": name, "beta_schedule": schedule})
        assert process.log_snr(0) > 0
        assert all(process.log_snr(t) > process.log_snr(t + 1) for t in range(0, 999, 37))


def test_trained_betas() -> None:
    betas = torch.linspace(1e-3, 0.05, 1000).tolist()
    assert_preserving(*made("DDIMScheduler", trained_betas=betas))


@pytest.mark.parametrize(
    "fields",
    [
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_karras_sigmas": True},
        {"prediction_type": "v_prediction"},
    ],
)
def test_fields_that_choose_a_samplers_steps_change_nothing(fields: dict[str, Any]) -> None:
    assert_preserving(*made("DPMSolverMultistepScheduler", **fields))


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_zero_terminal_snr(name: str) -> None:
    if "rescale_betas_zero_snr" not in inspect.signature(getattr(diffusers, name).__init__).parameters:
        with pytest.raises(DiffLensError, match="rescale_betas_zero_snr, which it ignores"):
            process_of({"_class_name": name, "rescale_betas_zero_snr": True})
        return
    scheduler, process = made(name, rescale_betas_zero_snr=True)
    torch.testing.assert_close(process.alphas_cumprod.float(), scheduler.alphas_cumprod, atol=2e-6, rtol=1e-5)
    assert float(process.alphas_cumprod[-1]) == float(scheduler.alphas_cumprod[-1])


def test_fields_that_a_file_leaves_out_are_the_classes_own() -> None:
    """Heun's schedule begins at 0.00085, DDPM's at 0.0001."""
    assert_preserving(diffusers.HeunDiscreteScheduler(), process_of({"_class_name": "HeunDiscreteScheduler"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_schedule": "exotic"}, "beta_schedule is 'exotic'"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None"),
        ({"num_train_timesteps": -3}, "num_train_timesteps is -3"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'"),
        ({"beta_start": float("nan")}, "beta_start is nan"),
        ({"beta_end": "0.02"}, "beta_end is '0.02'"),
        ({"beta_end": 1.5}, "beta_end is 1.5"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas must be numbers"),
        ({"trained_betas": []}, "trained_betas must be numbers"),
        ({"trained_betas": "no"}, "trained_betas must be numbers"),
        ({"prediction_type": "velocity"}, "unknown prediction_type 'velocity'"),
        ({"prediction_type": "flow_prediction"}, "flow sigmas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow sigmas"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
            },
            "continuous time",
        ),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "unknown prediction_type"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0}, "sigma_data is 0"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90}, "sigma_min must be below sigma_max"),
        ({"_class_name": "CMStochasticIterativeScheduler", "sigma_max": "80"}, "sigma_max is '80'"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": float("nan")}, "sigma_min is nan"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": -1}, "is -1"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
        ({"_class_name": "KarrasVeScheduler"}, "variance exploding"),
        ({"_class_name": "SomebodysScheduler"}, "its forward process is not known"),
    ],
)
def test_what_cannot_be_read_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        process_of(fields)


# --- fields that a file may hold ---

WHOLE = st.integers(-(10**3), 10**6) | st.sampled_from([10**7, 10**30, 10**400])
NUMBERS = WHOLE | st.floats() | st.booleans()
VALUES = st.recursive(
    st.none() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
BETAS = st.lists(st.floats(0, 1, exclude_max=True), max_size=3)
WORDS = st.sampled_from(["epsilon", "v_prediction", "sample", "linear", "scaled_linear", "sigmoid"])


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_field_is_read_or_refused_by_name(data: st.DataObject) -> None:
    """No other exception, and a process that is read gives numbers at its bounds."""
    name = data.draw(st.sampled_from(known_schedulers()))
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    fields = [field for field in parameters if field not in ("self", "kwargs")]
    changes = data.draw(st.dictionaries(st.sampled_from(fields), VALUES | BETAS | WORDS, max_size=3))
    try:
        process = process_of({"_class_name": name, **changes})
    except DiffLensError:
        return
    assert process.describe()
    assert process.fingerprint()
    levels = torch.tensor(process.bounds)
    assert all(values.isfinite().all() for values in process.coefficients(levels))
    assert process.network_time(levels).double().isfinite().all()
    low, high = process.bounds
    assert low <= process.at_log_snr(0.0) <= high
    assert low <= process.at(0.5) <= high


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained_betas": [0.1] * (10**6 + 1)}, "trained_betas has 1,000,001 numbers"),
        ({"num_train_timesteps": 10**6 + 1}, "num_train_timesteps is 1000001"),
        ({"beta_end": 10**400}, "beta_end is"),
        ({"trained_betas": [0.1], "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.0, 0.0], "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 10**400}, "sigma_data is"),
        ({"_class_name": ["DDPMScheduler"]}, "cannot be read"),
    ],
)
def test_sizes_and_extremes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        process_of(fields)


# --- which fields matter ---


def defaults_of(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def changed(field: str, default: Any) -> Any:
    """Another value for a field of a scheduler class, of the same kind."""
    others = {
        "beta_schedule": "squaredcos_cap_v2",
        "trained_betas": [0.1, 0.2],
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
    }
    if field in others:
        return others[field]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 2
    return default * 0.9 if isinstance(default, float) else "other"


def seen(process: NoiseProcess) -> tuple[Any, ...]:
    """What features and levels depend on."""
    low, high = process.bounds
    levels = process.level_tensor(torch.tensor([low, (low + high) / 2, high]), 3)
    scale = process.input_scale(levels)
    values = (*process.coefficients(levels), process.network_time(levels))
    return process.bounds, [each.tolist() for each in (*values, *(() if scale is None else (scale,)))]


@pytest.mark.parametrize("name", known_schedulers())
def test_features_depend_on_the_fields_that_are_named_and_on_no_others(name: str) -> None:
    before = process_of({"_class_name": name})
    for field, default in defaults_of(name).items():
        try:
            process = process_of({"_class_name": name, field: changed(field, default)})
        except DiffLensError:
            assert field in ("use_flow_sigmas", "invert_sigmas")
            continue
        assert (seen(process) != seen(before)) == (field in process.fields), field
        if seen(process) == seen(before):
            assert process.fingerprint() == before.fingerprint()


def test_the_table_of_the_documentation_names_the_same_fields() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", DOCS.read_text(), re.MULTILINE)
    by_answer: dict[bool, set[str]] = {True: set(), False: set()}
    for names, answer in rows:
        by_answer[answer != "no"] |= {*re.findall("`(.*?)`", names)}
    given = [{}, {"trained_betas": [0.1, 0.2]}]
    processes = [process_of({"_class_name": name}) for name in known_schedulers()] + [*map(process_of, given)]
    assert by_answer[True] == {field for process in processes for field in process.fields}
    existing = {field for name in known_schedulers() for field in defaults_of(name)}
    assert by_answer[False] <= existing - by_answer[True]


# --- what the network predicts ---


def mixed(scheduler: Any, t: int) -> tuple[Tensor, Tensor]:
    return scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5


@pytest.mark.parametrize(
    ("kind", "words", "target"),
    [
        ("epsilon", "epsilon, the noise", lambda x_0, noise, signal, scale: noise),
        ("sample", "the clean image, x_0", lambda x_0, noise, signal, scale: x_0),
        (
            "v_prediction",
            "v: sqrt(abar_t) noise - sqrt(1 - abar_t) x_0",
            lambda x_0, noise, signal, scale: signal * noise - scale * x_0,
        ),
    ],
)
def test_the_prediction_of_variance_preserving_networks(kind: str, words: str, target: Any) -> None:
    """diffusers' scheduler recovers the image from it; likewise below."""
    scheduler, process = made("DDIMScheduler", prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    images, noise = images_and_noise()
    signal, scale = mixed(scheduler, 300)
    x_t = process.add_noise(images, 300, noise)
    step = scheduler.step(target(images, noise, signal, scale), 300, x_t)
    torch.testing.assert_close(step.pred_original_sample, images, atol=1e-5, rtol=1e-5)
    assert (process.prediction, process.describe_prediction()) == (kind, words)


@pytest.mark.parametrize("name", EDM)
@pytest.mark.parametrize(
    ("kind", "word", "sign"), [("epsilon", "F", 1), ("v_prediction", "v_prediction", -1)]
)
def test_the_prediction_of_edm_networks(name: str, kind: str, word: str, sign: int) -> None:
    """Karras et al. (2022), table 1, and with unit data v of a variance-preserving process."""
    scheduler, process = made(name, prediction_type=kind, sigma_data=1.0)
    images, noise = images_and_noise()
    sigma = 3.0
    x_t = process.add_noise(images, sigma, noise)
    c_skip, c_out = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1) ** 0.5
    target = sign * (images - c_skip * x_t) / c_out
    recovered = scheduler.precondition_outputs(x_t, target, torch.tensor(sigma))
    torch.testing.assert_close(recovered, images, atol=1e-5, rtol=1e-5)
    v = (noise - sigma * images) / (sigma**2 + 1) ** 0.5
    torch.testing.assert_close(target, -sign * v, atol=1e-5, rtol=1e-5)
    assert process.prediction == word
    assert f"c_skip x_t {'+' if sign > 0 else '-'} c_out" in process.describe_prediction()


def test_the_prediction_of_consistency_models() -> None:
    scheduler, process = made("CMStochasticIterativeScheduler", clip_denoised=False)
    images, noise = images_and_noise()
    scheduler.set_timesteps(1)
    sigma = float(scheduler.sigmas[0])
    x_t = process.add_noise(images, sigma, noise)
    c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
    c_out = (sigma - 0.002) * 0.5 / (sigma**2 + 0.25) ** 0.5
    scheduler.scale_model_input(x_t, scheduler.timesteps[0])
    step = scheduler.step((images - c_skip * x_t) / c_out, scheduler.timesteps[0], x_t)
    torch.testing.assert_close(step.prev_sample, images, atol=1e-4, rtol=1e-4)
    assert process.prediction == "F"
    assert "c_out = 0 at sigma_min" in process.describe_prediction()
    assert float(scheduler.get_scalings_for_boundary_condition(torch.tensor(0.002))[1]) == 0


def test_the_prediction_of_ncsnpp() -> None:
    """From the smallest sigma, the reverse step of the SDE with the score ends at the image."""
    scheduler, process = made("ScoreSdeVeScheduler")
    images, noise = images_and_noise()
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    sigma = float(scheduler.discrete_sigmas[0])
    x_t = process.add_noise(images, sigma, noise)
    step = scheduler.step_pred(-noise / sigma, torch.tensor([0.0, 0.0]), x_t)
    torch.testing.assert_close(process.to_images(step.prev_sample_mean), images, atol=1e-5, rtol=1e-5)
    assert (process.prediction, process.describe_prediction()[-14:]) == ("score", "-noise / sigma")


def test_the_prediction_of_flows() -> None:
    scheduler, process = made("FlowMatchEulerDiscreteScheduler")
    images, noise = images_and_noise()
    scheduler.set_timesteps(5)
    sigma = float(scheduler.sigmas[-2])
    x_t = process.add_noise(images, sigma, noise)
    step = scheduler.step(noise - images, scheduler.timesteps[-1], x_t)
    torch.testing.assert_close(step.prev_sample, images, atol=1e-5, rtol=1e-5)
    assert process.prediction == "velocity"
    assert process.describe_prediction().endswith("noise - x_0")
    assert LinearInterpolant(towards_noise=False).describe_prediction().endswith("x_0 - noise")
