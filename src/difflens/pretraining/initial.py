"""The weights that a pre-training starts from, where they are those of another backbone (`--init-from`)."""

import json
from typing import Any

from diffusers import UNet2DModel

from difflens.backbones.load import load_backbone
from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError
from difflens.pretraining.export import images_seen
from difflens.processes.variance_preserving import VariancePreserving
from difflens.run.console import note
from difflens.run.reading import short


def load_initial(spec: str, unet: UNet2DModel, schedule: VariancePreserving) -> int | None:
    """Load the weights of the backbone `spec` into `unet`.

    The side of the images may differ, since weights do not depend on it.

    Args:
        spec: the argument of `load_backbone`.
        unet, schedule: the network that is trained and its noise schedule, which the backbone must have.

    Returns:
        The images that the backbone had seen in its training; None if its folder does not say.

    Raises:
        DiffLensError: the backbone cannot be loaded, or its architecture, schedule or prediction differs.
    """
    if spec.startswith("random:"):
        raise DiffLensError(f"--init-from {spec} is untrained: leave it out to start from fresh weights")
    backbone = load_backbone(spec)
    if not isinstance(backbone, UNetBackbone) or not isinstance(backbone.unet, UNet2DModel):
        raise DiffLensError(f"--init-from {spec} is no UNet2DModel, which diffusion pre-training trains")
    if backbone.autoencoder is not None:
        raise DiffLensError(f"--init-from {spec} reads latents, and pre-training is on pixels")
    differences = [*_differences(backbone.unet, unet), *_process_differences(backbone.process, schedule)]
    if differences:
        raise DiffLensError(f"--init-from {spec} does not fit this pre-training: {'; '.join(differences)}")
    sides = backbone.unet.config.sample_size, unet.config.sample_size
    if sides[0] != sides[1]:
        note(f"init-from: {spec} was trained on images of side {sides[0]}, and goes on with side {sides[1]}")
    unet.load_state_dict(backbone.unet.state_dict())
    return images_seen(spec)


def _differences(stored: UNet2DModel, new: UNet2DModel) -> list[str]:
    """Return a line for each field of the architecture in which two networks differ."""
    fields = (name for name in new.config if not name.startswith("_") and name != "sample_size")
    pairs = ((name, _plain(stored.config.get(name)), _plain(new.config[name])) for name in fields)
    return [f"{name} is {short(old)}, not {short(value)}" for name, old, value in pairs if old != value]


def _process_differences(stored: Any, new: VariancePreserving) -> list[str]:
    """Return a line for each property of the noise process in which two networks differ."""
    if stored.fingerprint() != new.fingerprint():
        return [f"its noise process is {stored.describe()}, and not with {new.config['beta_schedule']} betas"]
    values = {
        "prediction": (stored.prediction, new.prediction),
        "its variance": (_variance(stored), _variance(new)),
    }
    return [f"{name} is {old}, not {value}" for name, (old, value) in values.items() if old != value]


def _variance(process: Any) -> str:
    return "learned" if process.config.get("variance_type") == "learned_range" else "fixed"


def _plain(value: object) -> object:
    """Return a field of a configuration as JSON holds it, so that a list equals a tuple."""
    return json.loads(json.dumps(value))
