"""The weights that a pre-training starts from, where they are those of another backbone (`--init-from`)."""

import json

from diffusers import UNet2DModel

from difflens.backbones.adm import known_release
from difflens.backbones.checkpoint import FLAGS
from difflens.backbones.config import is_checkpoint
from difflens.backbones.load import load_backbone
from difflens.backbones.unet import UNetBackbone
from difflens.errors import DiffLensError, expanded
from difflens.pretraining.export import images_seen
from difflens.processes.base import NoiseProcess
from difflens.processes.schedulers import process_of
from difflens.processes.variance_preserving import VariancePreserving
from difflens.run.console import note
from difflens.run.reading import short


def load_initial(spec: str, unet: UNet2DModel, schedule: VariancePreserving) -> int | None:
    """Load the weights of the backbone `spec` into `unet`.

    The side of the images may differ, since weights do not depend on it. A checkpoint file whose schedule is
    not known is taken to have that of the training.

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
    # the weights of a checkpoint file need not show a side
    backbone = load_backbone(spec, image_size=unet.config.sample_size if is_checkpoint(spec) else None)
    if not isinstance(backbone, UNetBackbone) or not isinstance(backbone.unet, UNet2DModel):
        raise DiffLensError(f"--init-from {spec} is no UNet2DModel, which diffusion pre-training trains")
    if backbone.autoencoder is not None:
        raise DiffLensError(f"--init-from {spec} reads latents, and pre-training is on pixels")
    process: NoiseProcess = backbone.process
    if _schedule_is_unknown(spec, backbone.unet):
        betas = schedule.config["beta_schedule"]
        note(f"init-from: {spec} does not hold its noise schedule; it is taken to be {betas}, as in this run")
        process = process_of({**process.config, "beta_schedule": betas})
    differences = [
        *_differences(backbone.unet, unet),
        *_process_differences((process, backbone.unet), (schedule, unet)),
    ]
    if differences:
        raise DiffLensError(f"--init-from {spec} does not fit this pre-training: {'; '.join(differences)}")
    sides = backbone.unet.config.sample_size, unet.config.sample_size
    if sides[0] is not None and sides[0] != sides[1]:
        note(f"init-from: {spec} was trained on images of side {sides[0]}, and goes on with side {sides[1]}")
    unet.load_state_dict(backbone.unet.state_dict())
    return images_seen(spec)


def _schedule_is_unknown(spec: str, unet: UNet2DModel) -> bool:
    """Return True for a checkpoint file that is no known release and has no file of flags beside it."""
    path = expanded(spec)
    flags = any(path.with_suffix(ending).exists() for ending in FLAGS)
    return is_checkpoint(spec) and not flags and known_release(unet) is None


def _differences(stored: UNet2DModel, new: UNet2DModel) -> list[str]:
    """Return a line for each field of the architecture in which two networks differ."""
    fields = (name for name in new.config if not name.startswith("_") and name != "sample_size")
    pairs = ((name, _plain(stored.config.get(name)), _plain(new.config[name])) for name in fields)
    return [f"{name} is {short(old)}, not {short(value)}" for name, old, value in pairs if old != value]


def _process_differences(
    stored: tuple[NoiseProcess, UNet2DModel], new: tuple[VariancePreserving, UNet2DModel]
) -> list[str]:
    """Return a line for each property of the noise process in which two networks differ."""
    (process, _), (schedule, _) = stored, new
    if process.fingerprint() != schedule.fingerprint():
        betas = schedule.config["beta_schedule"]
        return [f"its noise process is {process.describe()}, and not with {betas} betas"]
    values = {
        "prediction": (process.prediction, schedule.prediction),
        "its variance": (_variance(*stored), _variance(*new)),
    }
    return [f"{name} is {old}, not {value}" for name, (old, value) in values.items() if old != value]


def _variance(process: NoiseProcess, unet: UNet2DModel) -> str:
    """Return the kind of variance; checkpoint files and many schedulers do not name that of their network."""
    if unet.config.out_channels != 2 * unet.config.in_channels:
        return "fixed"
    return "learned, not as a share" if process.config.get("variance_type") == "learned" else "learned"


def _plain(value: object) -> object:
    """Return a field of a configuration as JSON holds it, so that a list equals a tuple."""
    return json.loads(json.dumps(value))
