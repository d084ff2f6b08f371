"""The table of diffusers' schedulers: which process each describes, or why it is refused."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from difflens.errors import DiffLensError, listing
from difflens.processes.additive import EDM, ConsistencyModel, VarianceExploding
from difflens.processes.base import NoiseProcess
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.variance_preserving import VariancePreserving

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
"""Schedulers whose network is fed sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise and told the step t.

Those that count in sigma (Euler, Heun, LMS, KDPM2) scale x_0 + sigma noise by 1 / sqrt(sigma^2 + 1) before
the network, which is the same. Fields that choose the steps of a sampler (`timestep_spacing`,
`steps_offset`, Karras' sigmas) change neither x_t nor the time of a step.
"""

# The forward process of schedulers outside the table, by a part of their name, for the message.
_OTHER_PROCESSES = {
    "Cosine": "x_0 + sigma noise, its input scaled by c_in, and the time 2 arctan(sigma) / pi",
    "KarrasVe": "(x_0 + sigma noise + 1) / 2 and the time sigma / 2 (variance exploding)",
    "Vp": "images of a continuous variance-preserving SDE",
    "SCM": "cos(t) x_0 + sin(t) noise (TrigFlow)",
    "Flow": "images of a flow that its own pipeline defines",
    "IPNDM": "a schedule of its own (alpha and beta on a circle)",
}


def process_of(config: Mapping[str, Any] | None = None) -> NoiseProcess:
    """Return the noise process of a diffusers scheduler configuration.

    Fields that the file leaves out have the defaults of its scheduler class. The process' `fields` names
    those on which features depend; docs/schedulers.md says why.

    Args:
        config: without `_class_name`, that of a DDPM scheduler; None or empty: DDPM's linear schedule of
            1,000 steps.

    Raises:
        DiffLensError: the forward process of the scheduler is not known, or a field has an unknown value.
    """
    given = dict(config or {})
    name = str(given.get("_class_name", "DDPMScheduler"))
    make = _MAKERS.get(name)
    if make is None:
        process = next((text for part, text in _OTHER_PROCESSES.items() if part in name), None)
        right = f"its network takes {process}" if process else "its forward process is not known"
        raise DiffLensError(
            f"{name} cannot be read: {right}, and difflens reads the processes of "
            f"{listing(sorted(_MAKERS), len(_MAKERS))}"
        )
    return make({**_defaults(name), **given, "_class_name": name}, given)


def _variance_preserving(fields: Mapping[str, Any], given: Mapping[str, Any]) -> VariancePreserving:
    name, prediction = fields["_class_name"], fields.get("prediction_type", "epsilon")
    if fields.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise DiffLensError(
            f"{name} cannot be read with flow sigmas: its network takes (1 - sigma) x_0 + sigma noise, and "
            "its sampler rounds the time that is told. FlowMatchEulerDiscreteScheduler states the process"
        )
    if fields.get("timestep_type") == "continuous" and prediction == "v_prediction":
        raise DiffLensError(
            f"{name} cannot be read with continuous time: its network is told ln(sigma) / 4. "
            "EDMEulerScheduler states the process"
        )
    if fields.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in _defaults(name):
        raise DiffLensError(
            f"{name} cannot be read with rescale_betas_zero_snr, which it ignores: the betas of training and "
            "of the pipeline differ. DDIMScheduler states the process with zero terminal SNR"
        )
    _known_prediction(fields, "epsilon", "v_prediction", "sample")
    return VariancePreserving.from_fields(fields, given)


def _edm(fields: Mapping[str, Any], given: Mapping[str, Any]) -> EDM:
    _known_prediction(fields, "epsilon", "v_prediction")
    return EDM(_sigmas(fields), {**fields}, _positive(fields, "sigma_data"))


def _consistency(fields: Mapping[str, Any], given: Mapping[str, Any]) -> ConsistencyModel:
    return ConsistencyModel(_sigmas(fields), {**fields}, _positive(fields, "sigma_data"))


def _variance_exploding(fields: Mapping[str, Any], given: Mapping[str, Any]) -> VarianceExploding:
    return VarianceExploding(_sigmas(fields), {**fields})


def _flow(fields: Mapping[str, Any], given: Mapping[str, Any]) -> LinearInterpolant:
    if fields.get("invert_sigmas"):
        raise DiffLensError(
            f"{fields['_class_name']} cannot be read with invert_sigmas: its pipeline turns time round, and "
            "the file does not say for what"
        )
    return LinearInterpolant(True, _positive(fields, "num_train_timesteps"), {**fields})


_MAKERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], NoiseProcess]] = {
    **dict.fromkeys(VARIANCE_PRESERVING, _variance_preserving),
    "CMStochasticIterativeScheduler": _consistency,
    "EDMDPMSolverMultistepScheduler": _edm,
    "EDMEulerScheduler": _edm,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "FlowMatchLCMScheduler": _flow,
    "ScoreSdeVeScheduler": _variance_exploding,
}


def known_schedulers() -> tuple[str, ...]:
    """Return the names of all scheduler classes whose process is known."""
    return tuple(sorted(_MAKERS))


@cache
def _defaults(scheduler: str) -> dict[str, Any]:
    """Return the fields of a scheduler class of diffusers with their defaults."""
    import diffusers  # takes seconds

    fields = inspect.signature(getattr(diffusers, scheduler).__init__).parameters.values()
    return {each.name: each.default for each in fields if each.default is not inspect.Parameter.empty}


def _known_prediction(fields: Mapping[str, Any], *known: str) -> None:
    prediction = fields.get("prediction_type", "epsilon")
    if prediction not in known:
        raise DiffLensError(
            f"{fields['_class_name']} has the unknown prediction_type {prediction!r}; known are "
            f"{listing(known)}"
        )


def _positive(fields: Mapping[str, Any], name: str) -> float:
    value = fields[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 10**9:
        raise DiffLensError(f"{name} is {value!r}; it must be a number above 0, at most 1,000,000,000")
    return float(value)


def _sigmas(fields: Mapping[str, Any]) -> tuple[float, float]:
    """Return sigma_min and sigma_max."""
    low, high = _positive(fields, "sigma_min"), _positive(fields, "sigma_max")
    if low >= high:
        raise DiffLensError(f"sigma_min is {low:g} and sigma_max {high:g}; sigma_min must be below sigma_max")
    return low, high
