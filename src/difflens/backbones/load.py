"""`load_backbone`: a backbone from its name."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from difflens.backbones.adm import read_checkpoint, unet_from_adm
from difflens.backbones.base import Backbone, Defaults
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.config import is_checkpoint
from difflens.backbones.encoder import TASK as ENCODER_TASK
from difflens.backbones.encoder import EncoderBackbone
from difflens.backbones.pixels import PixelBackbone
from difflens.backbones.timm import TimmBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.choices import ScheduleName
from difflens.errors import DiffLensError
from difflens.noise import NoiseSchedule

BUNDLED = {
    # chosen on a held-out part of the training images (benchmarks/RESULTS.md)
    "fashion": Defaults(18, 5, (18, 20), (5, 20), (15, 18), token_side=4),
}

_CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors")
_KNOWN = (
    "fashion, a diffusers folder or another that pretrain wrote, an OpenAI guided-diffusion checkpoint (.pt, "
    ".safetensors), a hub id (OWNER/NAME), timm:NAME, pixels, or random: before any of them for the same "
    "network untrained"
)


def load_backbone(
    spec: str,
    *,
    num_head_channels: int = 64,
    noise_schedule: ScheduleName = "linear",
    image_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a frozen backbone.

    Args:
        spec: one of

            - `fashion`: bundled with the package, 1x32x32, trained on Fashion-MNIST's training images;
            - a folder in diffusers format, of a `UNet2DModel` or of a pipeline with a `unet/` subfolder;
            - a folder of an encoder that `difflens pretrain` trained by another method than diffusion;
            - an OpenAI guided-diffusion checkpoint, `.pt` or `.safetensors`;
            - the id of a model on the Hugging Face hub;
            - `timm:NAME`: a timm model with the hub's weights;
            - `timm:NAME@FILE`: a timm model with the weights in a local file;
            - `pixels` or `pixels:CHANNELSxSIDE`: the images themselves;
            - `random:` before any of these: the same architecture with fresh weights (seed 0).

        num_head_channels: channels of one attention head of an OpenAI checkpoint; the weights do not show it.
        noise_schedule: noise schedule of an OpenAI checkpoint; the weights do not show it.
        image_size: side of the images, in pixels; None: that of the training images.
        device: the device for the network.

    Raises:
        DiffLensError: there is no such backbone, or its files are damaged or of another kind.
    """
    kind, _, rest = spec.partition(":")
    path = Path(spec).expanduser()
    asks_for_checkpoint = num_head_channels != 64 or noise_schedule != "linear"
    if asks_for_checkpoint and not is_checkpoint(spec):
        raise DiffLensError(
            f"{spec} is no OpenAI checkpoint, and other backbones do not read them: leave out "
            "--num-head-channels and --noise-schedule"
        )
    if kind == "random" and rest.startswith("timm:"):
        untrained = TimmBackbone.from_spec(rest, image_size, untrained=True)
        untrained.spec = spec
        return untrained.to(device)
    if kind == "random" and rest:
        backbone = load_backbone(
            rest, num_head_channels=num_head_channels, noise_schedule=noise_schedule, image_size=image_size
        )
        backbone = _untrained(backbone)
        backbone.spec = spec
        return backbone.to(device)
    if kind == "pixels":
        return PixelBackbone.from_spec(spec, image_size)
    if kind == "timm":
        return TimmBackbone.from_spec(spec, image_size).to(device)
    if spec in BUNDLED:
        folder = Path(str(files("difflens") / "assets" / spec))
        backbone = _from_folder(folder, spec, image_size, BUNDLED[spec])
    elif path.is_dir():
        backbone = _from_folder(path, spec, image_size)
    elif path.is_file():
        unet = unet_from_adm(read_checkpoint(path), num_head_channels, str(path))
        schedule = NoiseSchedule.from_config({"beta_schedule": noise_schedule})
        backbone = UNetBackbone(unet, schedule, spec, image_size)
    elif path.suffix in _CHECKPOINTS or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise DiffLensError(f"no backbone {spec!r}: no such file or folder, and known are {_KNOWN}")
    else:
        backbone = _from_folder(_download(spec), spec, image_size)
    return backbone.to(device)


def resolved(spec: str) -> str:
    """Return `spec` with an absolute path, if it has a path: it is valid in any working directory."""
    if spec.startswith(("timm:", "random:timm:")):
        name, at, file = spec.partition("@")
        return f"{name}@{Path(file).expanduser().resolve()}" if at else spec
    kind, colon, name = spec.rpartition(":")
    if name in BUNDLED or not Path(name).expanduser().exists():
        return spec
    return f"{kind}{colon}{Path(name).expanduser().resolve()}"


def _from_folder(
    folder: Path, spec: str, image_size: int | None, defaults: Defaults | None = None
) -> Backbone:
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read_json(home / "config.json", f"{folder} is not a diffusers model")
    if config.get("task") == ENCODER_TASK:
        encoder = _encoder(config, str(folder / "config.json"), spec, image_size)
        encoder.load_weights(folder / "model.safetensors")
        return encoder
    name = config.get("_class_name")
    if name != "UNet2DModel":
        raise DiffLensError(f"{folder} holds a {name}; difflens reads unconditional networks, UNet2DModel")
    try:
        unet, info = UNet2DModel.from_pretrained(
            home, torch_dtype=torch.float32, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers raises many types for damaged weights and configurations
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DiffLensError(f"{home} cannot be loaded: {reason}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise DiffLensError(
            f"the weights in {home} do not belong to its config.json: {len(wrong)} parameters are missing, "
            f"left over or of another shape, {wrong[0]} for example"
        )
    candidates = (home / "scheduler_config.json" for home in (folder / "scheduler", folder))
    scheduler = next((path for path in candidates if path.is_file()), None)
    schedule = _read_json(scheduler, f"{scheduler} is not a scheduler's configuration") if scheduler else None
    if unet.config.time_embedding_type == "fourier":
        named = (schedule or {}).get("_class_name", "a DDPM scheduler")
        raise DiffLensError(
            f"{spec} takes the noise level sigma as its time (time_embedding_type fourier), and "
            f"{named} counts steps: a variance-exploding schedule would be right, and difflens "
            "does not read those yet"
        )
    return UNetBackbone(unet, NoiseSchedule.from_config(schedule), spec, image_size, defaults)


def _read_json(path: Path, problem: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DiffLensError(f"{problem}: there is no {path.name} in {path.parent}") from None
    except (ValueError, OSError) as error:
        raise DiffLensError(f"{problem}: {path} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise DiffLensError(f"{problem}: {path} holds no JSON object")
    return content


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "unet/*", "scheduler/*"]
    try:
        return Path(snapshot_download(spec, allow_patterns=patterns))
    except Exception as error:  # no network, no such repository, no permission
        reason = str(error).strip().splitlines()[0]
        raise DiffLensError(
            f"no backbone {spec!r}: it is no file or folder here, and the hub does not give it ({reason}); "
            f"known are {_KNOWN}"
        ) from error


def _encoder(description: dict[str, Any], source: str, spec: str, image_size: int | None) -> EncoderBackbone:
    """Return the encoder of `description`, the content of `source`, with fresh weights (seed 0)."""
    kind = BiGANBackbone if "generator" in description else EncoderBackbone
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind.from_description(description, spec, image_size)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DiffLensError(f"{source} does not describe an encoder: {error!r}") from error


def _untrained(backbone: Backbone) -> Backbone:
    if isinstance(backbone, EncoderBackbone):
        return _encoder(backbone.describe(), backbone.spec, backbone.spec, backbone.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in backbone.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return backbone
