"""`load_backbone`: a backbone from its name."""

from collections.abc import Mapping, Set
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from difflens.backbones.adm import known_release, unet_from_adm
from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.base import Backbone, Defaults, DiffusionBackbone, check_channels
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.checkpoint import CHECKPOINTS, read_checkpoint, refuse_others, with_flags
from difflens.backbones.conditions import class_condition, dit_condition
from difflens.backbones.config import FILE_OPTIONS, BackboneConfig, is_checkpoint
from difflens.backbones.dit import has_projectors, is_dit, transformer_from_dit
from difflens.backbones.encoder import TASK as ENCODER_TASK
from difflens.backbones.encoder import EncoderBackbone
from difflens.backbones.folder import from_folder
from difflens.backbones.pixels import PixelBackbone
from difflens.backbones.plausible import warn_if_implausible
from difflens.backbones.pretrained import check_size, read_json
from difflens.backbones.runs import backbone_beneath, network_folder
from difflens.backbones.timm import TimmBackbone
from difflens.backbones.transformer import TransformerBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.choices import AttentionOrder, FamilyName, ScheduleName, TapName, WeightsName
from difflens.errors import DiffLensError, counted, did_you_mean, expanded, nearby
from difflens.presets import ADM_256, ADM_256_URL
from difflens.processes.base import NoiseProcess
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.schedulers import process_of
from difflens.run.console import note
from difflens.run.reading import reason
from difflens.run.seeding import seeded

_ASSETS = Path(str(files("difflens") / "assets"))

# chosen on a held-out part of the training images (benchmarks/RESULTS.md)
_PLACES = {
    "fashion": Defaults(18, 5, (18, 20), (5, 20), (15, 18), token_side=4),
    "photos": Defaults(6, 20, (12, 13), (5, 50), (12, 13), token_side=4),
}

BUNDLED = tuple(sorted(card.parent.name for card in _ASSETS.glob("*/model_index.json")))
"""The names of the backbones that the package holds."""

# Whole names: repositories also hold variants (fp16, non_ema), other formats and parts that are never read.
_DESCRIBED = ("*.json", "*.txt", "*.model", "README.md")
_SHARDS = ("", "-?????-of-?????")
_PARTS = ("", "unet/", "unet_ema/", "transformer/", "transformer_ema/", "vae/", "vqvae/")
_ENCODERS = ("text_encoder/", "text_encoder_2/", "text_encoder_3/")
_SAFE = tuple(
    f"{home}{name}{shard}.safetensors"
    for homes, name in ((_PARTS, "diffusion_pytorch_model"), (("", *_ENCODERS), "model"))
    for home in homes
    for shard in _SHARDS
)
_PICKLED = {
    home: tuple(f"{home}{name}{shard}.bin" for shard in _SHARDS)
    for homes, name in ((_PARTS, "diffusion_pytorch_model"), (_ENCODERS, "pytorch_model"))
    for home in homes
}
_KNOWN = (
    f"{', '.join(BUNDLED)}, a diffusers folder, a run directory of pretrain or probe, a checkpoint of "
    "guided-diffusion, DiT, SiT or REPA (.pt, .safetensors), a hub id (OWNER/NAME), timm:NAME, pixels, or "
    "random: before any of them for the same network untrained"
)


def load_backbone(
    spec: str | Path,
    *,
    num_head_channels: int = 64,
    num_heads: int | None = None,
    attention_order: AttentionOrder | None = None,
    noise_schedule: ScheduleName = "linear",
    image_size: int | None = None,
    condition: str | None = None,
    tap: TapName | None = None,
    autoencoder: str | None = None,
    family: FamilyName | None = None,
    weights: WeightsName | None = None,
    condition_file: str | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """Load a frozen backbone.

    Args:
        spec: one of

            - `fashion`: bundled with the package, 1x32x32, trained on Fashion-MNIST's training images;
            - `photos`: likewise, 3x32x32, trained on CIFAR-10's training images;
            - a folder in diffusers format, of a network or of a pipeline with `unet/` or `transformer/`;
            - a run directory, or its `model/`: of `difflens pretrain` the network that it trained; of
              `probe`, `segment` or `detect` the frozen backbone that its head reads;
            - an OpenAI guided-diffusion checkpoint, or one in the layout of DiT, SiT and REPA, `.pt` or
              `.safetensors`;
            - the id of a model on the Hugging Face hub;
            - `timm:NAME`: a timm model with the hub's weights;
            - `timm:NAME@FILE`: a timm model with the weights in a local file;
            - `pixels` or `pixels:CHANNELSxSIDE`: the images themselves;
            - `random:` before any of these: the same architecture with fresh weights (seed 0). An autoencoder
              keeps its weights.

        num_head_channels: channels of one attention head of an OpenAI checkpoint; the weights do not show it.
        num_heads, attention_order: attention of an OpenAI checkpoint of another kind than the released ones,
            see `unet_from_adm`. A file of flags beside the checkpoint, NAME.json or NAME.yaml, is read.
        noise_schedule: noise schedule of an OpenAI checkpoint; the weights do not show it.
        image_size: side of the images, in pixels; None: that of the training images.
        condition: null, mean, zero or the number of a class, for a conditional network. None: null where
            there is a null class or a text encoder, else mean, else zero.
        tap: how a transformer's tokens are read, see `TransformerBackbone`; None: raw.
        autoencoder: folder of an autoencoder, for a network that reads latents and whose folder has none.
        family: dit, sit or repa: the family of a checkpoint in DiT's layout; the weights do not show it.
        weights: raw or ema, for a training checkpoint with a folder of averaged weights, `unet_ema/` or
            `transformer_ema/`; None: ema.
        condition_file: the stored embedding of the empty prompt; no text encoder runs then.
        device: the device for the network. "meta" reads no weights with `random:`.

    Raises:
        DiffLensError: there is no such backbone, its files are damaged or of another kind, or an option has
            no meaning for it.
    """
    if not isinstance(spec, str | Path):
        raise DiffLensError(
            f"a backbone is a name or a path, not a {type(spec).__name__}: save a pipeline of diffusers with "
            "`save_pretrained`, and name its folder"
        )
    spec = str(spec)
    config = BackboneConfig(
        spec=spec,
        num_head_channels=num_head_channels,
        num_heads=num_heads,
        attention_order=attention_order,
        noise_schedule=noise_schedule,
        image_size=image_size,
        condition=condition,
        tap=tap,
        autoencoder=autoencoder,
        family=family,
        weights=weights,
        condition_file=condition_file,
    )
    fresh = spec.startswith("random:") and spec != "random:"
    try:
        meta = torch.device(device).type == "meta"
    except RuntimeError as error:
        raise DiffLensError(f"no device {str(device)!r}: {reason(error)}") from error
    backbone = _load(replace(config, spec=spec.removeprefix("random:") if fresh else spec), fresh, meta)
    if fresh:
        backbone.spec = spec
    try:
        return backbone.to(device)
    except (RuntimeError, AssertionError) as error:  # no such GPU, no driver, or too little memory
        raise DiffLensError(f"the device {device} cannot be used: {reason(error)}") from error


def _load(config: BackboneConfig, fresh: bool, meta: bool) -> Backbone:
    """Return the backbone of `config`, with fresh weights for `fresh`, and then without any for `meta`."""
    spec, size = config.spec, config.image_size
    kind, _, _ = spec.partition(":")
    if not spec:
        raise DiffLensError(f"no backbone is named: known are {_KNOWN}")
    path = expanded(spec)
    if path.name in ("", ".."):  # a pipeline and its parts are known by their names
        path = path.resolve()
    if is_checkpoint(spec):
        network = _from_checkpoint(config, path, fresh and meta)
        if fresh:
            return network if meta else _untrained(network)
        warn_if_implausible(network)
        return network
    usual = BackboneConfig(spec)
    given = [name for name in FILE_OPTIONS if getattr(config, name) != getattr(usual, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DiffLensError(
            f"{spec} is no checkpoint file, and other backbones do not read its options: leave out {options}"
        )
    if kind in ("pixels", "timm"):
        _refuse_network_options(config)
        if kind == "pixels":
            return PixelBackbone.from_spec(spec, size)
        return TimmBackbone.from_spec(spec, size, untrained=fresh)
    if spec in BUNDLED:
        return _from_folder(config, bundled_folder(spec), _PLACES.get(spec), fresh, meta)
    if path.is_dir():
        return _from_directory(config, path, fresh, meta)
    if path.suffix in CHECKPOINTS or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        hint = did_you_mean(spec, (*BUNDLED, "pixels", *nearby(path)))
        hint = f"download it from {ADM_256_URL} (2.2 GB); " if path.name == ADM_256 else hint
        raise DiffLensError(f"no backbone {spec!r}: no such file or folder; {hint}known are {_KNOWN}")
    return _from_folder(config, _download(spec), None, fresh, meta)


def bundled_folder(name: str) -> Path:
    """Return the folder of the backbone `name`, one of `BUNDLED`."""
    return _ASSETS / name


def bundled_for(channels: int) -> str | None:
    """Return the bundled backbone for images of 1 or 3 channels; None if there is none."""
    for name in BUNDLED:
        network = bundled_folder(name) / "unet" / "config.json"
        if read_json(network, f"{network} is damaged")["in_channels"] == channels:
            return name
    return None


def resolved(spec: str) -> str:
    """Return `spec` with an absolute path, if it has a path: it is valid in any working directory."""
    if spec.startswith(("timm:", "random:timm:")):
        name, at, file = spec.partition("@")
        return f"{name}@{expanded(file).resolve()}" if at else spec
    kind, colon, name = spec.rpartition(":")
    if name in BUNDLED or not expanded(name).exists():
        return spec
    return f"{kind}{colon}{expanded(name).resolve()}"


def _from_directory(config: BackboneConfig, path: Path, fresh: bool, meta: bool) -> Backbone:
    """Return the backbone of a folder: of a network, or of a run directory.

    Raises:
        DiffLensError: options are given beside those of a run, or the backbone of a run has changed.
    """
    home = network_folder(path)
    read = backbone_beneath(home)
    if read is None:
        return _from_folder(config, home, None, fresh, meta)
    if config != BackboneConfig(config.spec, condition_file=config.condition_file):
        raise DiffLensError(
            f"{config.spec} reads {read.config.spec} with options of its own: leave out options of the "
            "backbone, or name that backbone"
        )
    note(f"backbone: {read.config.spec}, which {config.spec} reads")
    spec = read.config.spec.removeprefix("random:")
    untrained = fresh or spec != read.config.spec
    try:
        backbone = _load(replace(read.config, spec=spec), untrained, meta)
    except RecursionError:
        raise DiffLensError(f"{path} names itself as the backbone that it reads") from None
    if not fresh and backbone.fingerprint() != read.fingerprint:
        raise DiffLensError(
            f"the backbone {read.config.spec} has changed since {path} was trained on it: name the backbone "
            "itself if the new weights are meant"
        )
    backbone.spec = config.spec
    return backbone


def _from_folder(
    config: BackboneConfig, folder: Path, defaults: Defaults | None, fresh: bool, meta: bool
) -> Backbone:
    if (folder / "config.json").exists():
        description = read_json(folder / "config.json", f"{folder} is not a diffusers model")
        if description.get("task") == ENCODER_TASK:
            _refuse_network_options(config)
            with torch.device("meta"):
                outline = _encoder(description, str(folder / "config.json"), config.spec, config.image_size)
            check_size(outline, folder, fresh)
            encoder = _encoder(description, str(folder / "config.json"), config.spec, config.image_size)
            if not fresh:
                encoder.load_weights(folder / "model.safetensors")
            return encoder
    backbone = from_folder(config, folder, defaults, fresh=fresh, meta=fresh and meta)
    return _untrained(backbone) if fresh and not meta else backbone


def _from_checkpoint(config: BackboneConfig, path: Path, meta: bool) -> DiffusionBackbone:
    """Return the backbone of a checkpoint file in the layout of guided-diffusion or of DiT.

    For `meta`, only the names and shapes of the file are read.
    """
    (state, arguments), source, spec = read_checkpoint(path, config.weights), str(path), config.spec
    refuse_others(state, source)
    if meta:
        state = {name: tensor.to("meta") for name, tensor in state.items()}
    usual = BackboneConfig(spec)
    if not is_dit(state):
        if config.family is not None or config.tap is not None or config.autoencoder is not None:
            raise DiffLensError(
                f"{spec} is a guided-diffusion checkpoint: leave out --family, --tap and --autoencoder"
            )
        flagged = with_flags(config, path)
        config = flagged.config
        given = {name for name in FILE_OPTIONS if getattr(config, name) != getattr(usual, name)}
        given |= flagged.stated
        if {"num_heads", "num_head_channels"} <= given:
            raise DiffLensError(
                f"{spec} has heads of equal number or of equal width: give --num-heads or --num-head-channels"
            )
        width = config.num_head_channels if "num_head_channels" in given else None
        unet = unet_from_adm(state, width, source, num_heads=config.num_heads, order=config.attention_order)
        if flagged.side is not None:
            unet.register_to_config(sample_size=flagged.side)
        if unet.config.sample_size is None and config.image_size is None:
            raise DiffLensError(
                f"{source} has other widths than OpenAI's models, so the side of its images is not known: "
                "give --image-size"
            )
        if unet.config.in_channels not in (1, 3):
            raise DiffLensError(
                f"{source} takes {counted(unet.config.in_channels, 'channel')}: difflens reads "
                "guided-diffusion checkpoints of 1 or 3. An upsampler is also fed a small image"
            )
        check_channels(unet.config.in_channels, unet.config.out_channels, None, source)
        schedule = process_of({"beta_schedule": _schedule(config, unet, given)})
        condition = class_condition(unet, config.condition, spec)
        return UNetBackbone(unet, schedule, spec, config.image_size, condition=condition)
    _check_arguments(arguments, config.family, source)
    process = _process_of_family(config, has_projectors(state), source)
    if config.noise_schedule != usual.noise_schedule and isinstance(process, LinearInterpolant):
        raise DiffLensError(f"{source} is read as flow matching: --noise-schedule is of the family dit")
    if config.num_heads is not None or config.attention_order is not None:
        raise DiffLensError(f"{source} has DiT's layout: leave out --num-heads and --attention-order")
    channels = None if config.num_head_channels == 64 else config.num_head_channels
    network = transformer_from_dit(state, channels, source)
    if config.autoencoder is None:
        raise DiffLensError(
            f"{source} takes {counted(network.config.in_channels, 'channel')}, which are latents: name the "
            "folder of "
            "its autoencoder with --autoencoder (a download of stabilityai/sd-vae-ft-ema for the released "
            "models)"
        )
    autoencoder = Autoencoder.from_folder(expanded(config.autoencoder), meta=meta)
    condition = dit_condition(network, config.condition, spec)
    parts = process, spec, config.image_size, None, autoencoder, condition
    return TransformerBackbone(network, *parts, tap=config.tap or "raw")


def _schedule(config: BackboneConfig, unet: UNet2DModel, given: Set[str]) -> ScheduleName:
    """Return the noise schedule of a guided-diffusion checkpoint: the one that is given, or that of a known
    model, whose settings are said.

    Args:
        given: the options of a checkpoint file that are given, on the command line or in a file of flags.
    """
    released = known_release(unet)
    if released is None:
        return config.noise_schedule
    chosen = config.noise_schedule if "noise_schedule" in given else released.noise_schedule
    heads = unet.config.get("num_attention_heads")
    told = f", {heads} heads" if heads is not None and "num_heads" not in given else ""
    note(
        f"{config.spec} has the widths of OpenAI's {released.file}: noise schedule {chosen}{told}. A file of "
        "flags beside it can say otherwise"
    )
    return chosen


def _process_of_family(config: BackboneConfig, projectors: bool, source: str) -> NoiseProcess:
    """Return the noise process of a checkpoint in DiT's layout.

    Raises:
        DiffLensError: the weights do not tell the family, and no option does, or they contradict it.
    """
    family = config.family or ("repa" if projectors else None)
    if family is None:
        raise DiffLensError(
            f"{source} has the layout of DiT, SiT and REPA, whose noise processes differ and whose weights "
            "look the same: say --family dit, sit or repa"
        )
    if projectors and family != "repa":
        raise DiffLensError(f"{source} has REPA's projectors, so it is not of the family {family}")
    if family == "dit":
        return process_of({"beta_schedule": config.noise_schedule})
    # SiT: t = 1 is the image; REPA turned time round
    return LinearInterpolant(towards_noise=family == "repa")


def _check_arguments(arguments: Mapping[str, Any], family: FamilyName | None, source: str) -> None:
    """Refuse what the training scripts of SiT and REPA say of the process, where difflens reads another."""
    path, prediction = arguments.get("path_type"), arguments.get("prediction")
    if path is None:
        return
    if family == "dit":
        raise DiffLensError(
            f"{source} has path_type {path!r} among its arguments, as SiT and REPA, not as DiT"
        )
    if str(path).lower() != "linear" or str(prediction or "v").lower() not in ("v", "velocity"):
        said = {"path_type": path, "prediction": prediction}
        known = ", ".join(f"{name} {value!r}" for name, value in said.items() if value is not None)
        raise DiffLensError(
            f"{source} has {known} among its arguments: difflens reads linear paths whose network predicts "
            "the velocity"
        )


def _refuse_network_options(config: BackboneConfig) -> None:
    names = {
        "condition": config.condition,
        "tap": config.tap,
        "autoencoder": config.autoencoder,
        "weights": config.weights,
    }
    given = [f"--{name}" for name, value in names.items() if value is not None]
    if given:
        raise DiffLensError(f"{config.spec} is no diffusion network: leave out {', '.join(given)}")


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(spec, allow_patterns=[*_DESCRIBED, *_SAFE]))
        # parts of before safetensors
        pickled = [
            name
            for home, names in _PICKLED.items()
            if (folder / home / "config.json").is_file() and not any((folder / home).glob("*.safetensors"))
            for name in names
        ]
        if not pickled:
            return folder
        return Path(snapshot_download(spec, allow_patterns=[*_DESCRIBED, *_SAFE, *pickled]))
    except Exception as error:  # no network, no such repository, no permission
        raise DiffLensError(
            f"no backbone {spec!r}: it is no file or folder here, and the hub does not give it "
            f"({reason(error)}); {did_you_mean(spec, nearby(Path(spec)))}known are {_KNOWN}"
        ) from error


def _encoder(description: dict[str, Any], source: str, spec: str, image_size: int | None) -> EncoderBackbone:
    """Return the encoder of `description`, the content of `source`, with fresh weights (seed 0)."""
    kind = BiGANBackbone if "generator" in description else EncoderBackbone
    try:
        with seeded():
            return kind.from_description(description, spec, image_size)
    except DiffLensError as error:
        raise DiffLensError(f"{source} does not describe an encoder: {error}") from error
    except Exception as error:  # timm's networks fail in many ways
        raise DiffLensError(f"{source} does not describe an encoder: {reason(error)}") from error


def _untrained(backbone: Backbone) -> Backbone:
    if isinstance(backbone, EncoderBackbone):
        return _encoder(backbone.describe(), backbone.spec, backbone.spec, backbone.image_size)
    with seeded():
        network: Any = backbone.network if isinstance(backbone, DiffusionBackbone) else backbone
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return backbone
