"""Folders in diffusers format: a network alone, or a pipeline with all its parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel, UNet2DModel

from difflens.backbones.autoencoder import Autoencoder
from difflens.backbones.base import Backbone, Defaults, check_channels
from difflens.backbones.conditions import (
    Condition,
    check_conditions,
    class_condition,
    dit_condition,
    text_condition,
)
from difflens.backbones.config import BackboneConfig
from difflens.backbones.distilled import DISTILLED, distilled_process
from difflens.backbones.pretrained import check_config, read_json, read_network
from difflens.backbones.transformer import WALKED, TransformerBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.choices import WeightsName
from difflens.errors import DiffLensError, counted, expanded
from difflens.processes.base import NoiseProcess
from difflens.processes.clean import Clean
from difflens.processes.interpolant import LinearInterpolant
from difflens.processes.schedulers import process_of
from difflens.run.console import warn
from difflens.run.reading import short
from difflens.run.text import a

_NETWORKS = ("unet", "transformer")
_AUTOENCODERS = ("vae", "vqvae")

# networks of diffusers that are trained by flow matching alone
_FLOWS = ("SD3Transformer2DModel", "FluxTransformer2DModel")

# networks of diffusers that are trained by several schedules: scaled linear by Stable Diffusion, for example
_OF_MANY_SCHEDULES = ("UNet2DConditionModel",)

# What diffusers called Transformer2DModel before 0.29, by `norm_type`.
_FORMER = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def pipeline_of(folder: Path) -> Path:
    """Return the folder of the pipeline that the network in `folder` is part of; `folder` for one alone."""
    parts = [f"{name}{end}" for name in _NETWORKS for end in ("", "_ema")]
    beside = any((folder.parent / name).exists() for name in ("model_index.json", "scheduler", DISTILLED))
    return folder.parent if folder.name in parts and beside else folder


@dataclass(frozen=True)
class _Pipeline:
    """The files of a folder.

    Attributes:
        folder: the folder that the user named.
        home: the folder of the network.
        kind: the network's class.
        written: the network's config.json.
        index: the pipeline's model_index.json; empty for a network alone.
        scheduler, scheduler_file: the scheduler's configuration and its file; None if there is no file.
    """

    folder: Path
    home: Path
    kind: Any
    written: dict[str, Any]
    index: dict[str, Any]
    scheduler: dict[str, Any] | None
    scheduler_file: Path | None = None

    @classmethod
    def open(cls, folder: Path, weights: WeightsName | None = None) -> "_Pipeline":
        """Find the network of a pipeline, or the pipeline of a network.

        Raises:
            DiffLensError: the folder holds no network, or `weights` names some that it does not have.
        """
        whole = pipeline_of(folder)
        if whole != folder:
            if weights is not None and (weights == "ema") != folder.name.endswith("_ema"):
                raise DiffLensError(f"{folder} holds other weights: name {whole}, or leave out --weights")
            warn(f"{folder} is part of the pipeline in {whole}, which is read as a whole")
            folder, home = whole, folder
        else:
            home = _network_of(folder, weights)
        file, problem = home / "config.json", f"{folder} is not a diffusers model"
        if not file.exists() and (why := _why_no_network(folder)):
            raise DiffLensError(f"{problem}: {why}")
        written = read_json(file, problem)
        kind = _class_of(written, file, folder)  # a class that difflens does not walk has other fields
        check_config(written, file)
        path = folder / "model_index.json"
        index = read_json(path, f"{folder} is not a pipeline") if path.exists() else {}
        files = (each / "scheduler_config.json" for each in (folder / "scheduler", folder))
        path = next(filter(Path.exists, files), path)
        if path.name == "model_index.json":
            return cls(folder, home, kind, written, index, None)
        scheduler = read_json(path, f"{path} is no scheduler's configuration")
        return cls(folder, home, kind, written, index, scheduler, path)

    def process(self) -> NoiseProcess:
        """Return the noise process of the scheduler; DDPM's linear schedule if there is no file.

        Raises:
            DiffLensError: the scheduler is not known, or it belongs to another pipeline.
        """
        student = distilled_process(self.folder)
        if student is not None:
            return student
        found = (self.scheduler or {}).get("_class_name")
        if self.scheduler is not None and not isinstance(found, str):
            raise DiffLensError(f"{self.scheduler_file}: _class_name is {short(found)}: it must name a class")
        try:
            process = process_of(self.scheduler)
        except DiffLensError as error:
            raise DiffLensError(f"{self.scheduler_file}: {error}") from error
        named = self.index.get("scheduler")
        expected = named[1] if isinstance(named, list) and len(named) == 2 else None
        if expected is not None and not isinstance(expected, str):
            raise DiffLensError(f"{self.folder / 'model_index.json'}: scheduler names no class")
        if expected is not None and self.scheduler is None:
            raise DiffLensError(
                f"{self.folder} has no scheduler/scheduler_config.json, and its model_index.json names "
                f"{a(expected)}: add the file"
            )
        try:
            named_process = process_of({"_class_name": expected}) if expected and found else process
        except DiffLensError as error:
            raise DiffLensError(f"{self.folder / 'model_index.json'}: scheduler: {error}") from error
        if named_process.name != process.name:
            raise DiffLensError(
                f"{self.folder} names {a(str(expected))} in model_index.json, and its scheduler is "
                f"{a(str(found))}, "
                "which noises images differently: it belongs to another pipeline"
            )
        return process

    def autoencoder(self, given: str | None, meta: bool) -> Autoencoder | None:
        """Return the autoencoder of the folder, or the one that the user named; None if there is neither."""
        own = next((self.folder / name for name in _AUTOENCODERS if (self.folder / name).is_dir()), None)
        if given is None:
            named = [name for name in _AUTOENCODERS if any(self.index.get(name) or ())]
            if own is None and named:  # latents of three channels would pass for pixels
                raise DiffLensError(
                    f"{self.folder} has no folder {named[0]}/, which its model_index.json names: its network "
                    "reads latents. Add the folder, or name another with --autoencoder"
                )
            return None if own is None else Autoencoder.from_folder(own, meta=meta)
        if own is not None:
            raise DiffLensError(f"{self.folder} has an autoencoder, {own.name}/: leave out --autoencoder")
        return Autoencoder.from_folder(expanded(given), meta=meta)


def from_folder(
    config: BackboneConfig,
    folder: Path,
    defaults: Defaults | None = None,
    *,
    fresh: bool = False,
    meta: bool = False,
) -> Backbone:
    """Return the diffusion backbone in a folder.

    Args:
        config: the options.
        folder: holds a network, or a pipeline with a `unet/` or `transformer/` folder.
        defaults: the places that probes read by default.
        fresh: give the network new weights (seed 0). The folder then needs no weights of the network.
        meta: make network and autoencoder on the meta device, without any weights.

    Raises:
        DiffLensError: the files are damaged or do not belong together, or the network, its noise process or
            its conditions are not known.
    """
    pipeline = _Pipeline.open(folder, config.weights)
    kind = pipeline.kind
    process = pipeline.process()
    _check_time(pipeline, process)
    if kind is UNet2DConditionModel:
        check_conditions(pipeline.written, config.spec)
    autoencoder = pipeline.autoencoder(config.autoencoder, meta)
    taken, given = (pipeline.written.get(f"{end}_channels") for end in ("in", "out"))
    packed = 4 if kind is FluxTransformer2DModel else 1  # Flux stacks 2 x 2 latents
    if taken is not None:
        check_channels(taken // packed, given and given // packed, autoencoder, str(folder))
    if pipeline.scheduler is None and not isinstance(process, Clean):
        latents = "" if autoencoder else ". A network that reads latents also needs its --autoencoder"
        warn(f"{folder} has no scheduler_config.json: DDPM's linear schedule is assumed{latents}")
    if pipeline.index.get("requires_aesthetics_score"):
        raise DiffLensError(f"{folder} is told an aesthetic score of images, which difflens does not know")
    network = read_network(kind, pipeline.home, pipeline.written, fresh=fresh, meta=meta)
    condition: Condition | None
    if issubclass(kind, UNet2DModel):
        condition = class_condition(network, config.condition, config.spec)
    elif issubclass(kind, DiTTransformer2DModel):
        condition = dit_condition(network, config.condition, config.spec)
    else:
        stored = None if config.condition_file is None else Path(config.condition_file)
        condition = text_condition(
            network,
            config.condition,
            folder,
            config.image_size or _own_side(pipeline, autoencoder),
            stored,
            config.spec,
            meta=meta,
        )
    parts = process, config.spec, config.image_size, defaults, autoencoder, condition
    if not issubclass(kind, UNet2DModel | UNet2DConditionModel):
        return TransformerBackbone(network, *parts, tap=config.tap or "raw")
    if config.tap is not None:
        raise DiffLensError(f"{config.spec} is a U-Net, whose maps are read as they are: leave out --tap")
    return UNetBackbone(network, *parts)


def _network_of(folder: Path, weights: WeightsName | None) -> Path:
    """Return the folder of a pipeline's network: averaged weights where a training checkpoint has them."""
    raw = next((folder / name for name in _NETWORKS if (folder / name).is_dir()), folder)
    averaged = raw.with_name(f"{raw.name}_ema")
    if raw == folder or not averaged.is_dir():
        if weights is not None:
            raise DiffLensError(f"{folder} holds one set of weights, no unet_ema/: leave out --weights")
        return raw
    if weights is None:
        warn(f"{folder} holds raw and averaged weights: {averaged.name}/ is read; see --weights")
    return raw if weights == "raw" else averaged


def _class_of(written: dict[str, Any], file: Path, folder: Path) -> Any:
    """Return the class of diffusers that `written`, the content of config.json in `file`, names.

    Raises:
        DiffLensError: it is no denoiser that difflens can walk.
    """
    name = written.get("_class_name")
    if not isinstance(name, str | None):
        raise DiffLensError(f"{file}: _class_name is {short(name)}: it must name a class")
    name = str(name)
    if name == "Transformer2DModel":  # the name before diffusers 0.29
        name = _FORMER.get(str(written.get("norm_type")), name)
    size = written.get("sample_size")
    if isinstance(size, list | tuple) and len({*map(str, size)}) > 1:
        raise DiffLensError(f"{folder} takes images of {size[0]} x {size[1]} pixels, not square ones")
    readable = ("UNet2DModel", "UNet2DConditionModel", *WALKED)
    if name not in readable:
        raise DiffLensError(f"{folder} holds {a(name)}; difflens walks {', '.join(readable)}")
    return getattr(diffusers, name)


def _own_side(pipeline: _Pipeline, autoencoder: Autoencoder | None) -> int | None:
    """Return the side of the images, in pixels, that a network was made for; None if it states none."""
    size = pipeline.written.get("sample_size")
    size = size[0] if isinstance(size, list) and size else size
    return size * (1 if autoencoder is None else autoencoder.stride) if isinstance(size, int) else None


def _check_time(pipeline: _Pipeline, process: NoiseProcess) -> None:
    """Refuse a network that cannot embed the time that a process tells."""
    name = str(pipeline.written.get("_class_name"))
    if name in _FLOWS and not isinstance(process, LinearInterpolant):
        told = "it has no scheduler" if pipeline.scheduler is None else f"its process is {process.name}"
        raise DiffLensError(
            f"{pipeline.folder} holds {a(name)}, a network of flow matching, and {told}: add the folder "
            "scheduler/ of its pipeline"
        )
    if name in _OF_MANY_SCHEDULES and pipeline.scheduler is None and not isinstance(process, Clean):
        raise DiffLensError(
            f"{pipeline.folder} holds {a(name)} without a scheduler, and networks of this class have several "
            "noise schedules: add the folder scheduler/ of its pipeline"
        )
    kind = pipeline.written.get("time_embedding_type")
    rows = pipeline.written.get("num_train_timesteps") or 0
    if kind == "learned" and (process.unit != "step" or process.bounds[1] >= rows):
        raise DiffLensError(
            f"{pipeline.folder} has a table of {counted(rows, 'embedding')} of steps (time_embedding_type "
            "learned), "
            f"and its noise process has {process.describe_bounds()}: they do not belong together"
        )
    if kind == "fourier" and process.name != "variance exploding":
        named = (pipeline.scheduler or {}).get("_class_name", "a DDPM scheduler")
        raise DiffLensError(
            f"{pipeline.folder} takes the noise level sigma as its time (time_embedding_type fourier), and "
            f"{named} does not tell it: ScoreSdeVeScheduler would be right"
        )


def _why_no_network(folder: Path) -> str:
    """Return what a folder without a network's config.json looks like, for a message; "" if nothing known."""
    if (folder / "snapshots").is_dir():
        return "it is a cache of the hub: name the id of the model, or the folder within snapshots/"
    if (folder / "modular_model_index.json").exists():
        return "it is a modular pipeline: name the folder of its network"
    if any(folder.glob("*lora*.safetensors")):
        return "it is a LoRA, which changes another network: let diffusers fuse it and save the pipeline"
    path = folder / "model_index.json"
    if not path.exists():
        return ""
    name = read_json(path, f"{folder} is not a pipeline").get("_class_name")
    return f"it is {a(str(name))}, whose network is in neither unet/ nor transformer/"
