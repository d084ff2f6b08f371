"""Checkpoint files, read without running code."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from difflens.backbones.config import BackboneConfig
from difflens.choices import ScheduleName, WeightsName
from difflens.errors import DiffLensError, listing
from difflens.ranges import Pixels, Range
from difflens.run.reading import read_tensors, read_yaml


class Checkpoint(NamedTuple):
    """The content of a checkpoint file.

    Attributes:
        state: the parameters by name, on the CPU.
        arguments: what the training script was told, by name; empty if the file does not hold it.
    """

    state: dict[str, Tensor]
    arguments: Mapping[str, Any]


def read_checkpoint(path: Path, weights: WeightsName | None = None) -> Checkpoint:
    """Read a state dict in a `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file.

    A training checkpoint may hold the tensors one level down, under "ema", "state_dict" or "model". A
    "module." before every name is dropped. Large files are mapped, not copied.

    Args:
        weights: raw or ema, for a file that holds both; None: the averaged ones if there are any.

    Raises:
        DiffLensError: the file does not exist, is no checkpoint, is truncated, does not hold the `weights`
            beside others, or is a pickle that needs code to load. Such a pickle is refused, and nothing in it
            is run.
    """
    path = Path(path)
    if path.is_dir():
        raise DiffLensError(
            f"{path} is a directory, not a checkpoint: give the .pt or .safetensors file itself"
        )
    if not path.is_file():
        raise DiffLensError(f"no checkpoint at {path}: the file does not exist")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in CHECKPOINTS:
        content = _read_pickle(path)
    else:
        quantised = "quantised weights, and difflens reads float ones; " * (path.suffix == ".gguf")
        raise DiffLensError(f"{path} is not a checkpoint: {quantised}expected {', '.join(CHECKPOINTS)}")
    entries = content if isinstance(content, Mapping) else {}
    averaged = entries.get("ema")
    raw = next(filter(_is_state_dict, map(entries.get, ("state_dict", "model"))), None)
    if weights is not None and (raw is None or not _is_state_dict(averaged)):
        raise DiffLensError(f"{path} does not hold raw and averaged weights: leave out --weights")
    held = (raw, averaged) if weights == "raw" else (averaged, raw)
    state = next(filter(_is_state_dict, (content, *held)), None)
    if state is None:
        found = [f"{key!r} ({type(value).__name__})" for key, value in entries.items()]
        raise DiffLensError(
            f"{path} is not a state dict, that is a dict of tensors by parameter name: it holds "
            f"{listing(found) or f'one {type(content).__name__}'}"
        )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    arguments = entries.get("args")
    return Checkpoint(
        {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items()},
        vars(arguments) if isinstance(arguments, argparse.Namespace) else {},
    )


# Files of other projects, by how a name of theirs begins or what it holds: what they are, and what to do.
_OTHERS = (
    (
        r"model\.diffusion_model\.",
        "one file with all parts of a latent diffusion model: convert it with from_single_file of its "
        "pipeline in diffusers and save_pretrained, and name that folder",
    ),
    (
        r".*(\.lora_[AB]\.|\.lora\.(up|down)\.|\.lora_(up|down)\.)",
        "a LoRA, which changes another network: let diffusers fuse it into that network and save the "
        "pipeline, and name that folder",
    ),
    (
        r"(conv_in|time_embedding\.linear_1|pos_embed\.proj|transformer_blocks\.0\..*)\.(weight|bias)$",
        "the weights of a network in diffusers format: name their folder, which holds config.json",
    ),
    (
        r"(double_blocks|joint_blocks)\.",
        "a file of the authors of Flux or Stable Diffusion 3: convert it with from_single_file of its "
        "pipeline in diffusers and save_pretrained, and name that folder",
    ),
)


def refuse_others(state: Mapping[str, Tensor], source: str) -> None:
    """Raise DiffLensError for a file of another project that is known by its names."""
    for pattern, advice in _OTHERS:
        if name := next((name for name in state if re.match(pattern, name)), None):
            raise DiffLensError(f"{source} is {advice} ({listing([name])})")


CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of checkpoint files."""
FLAGS = (".json", ".yaml", ".yml")
"""Endings of the file of flags beside a checkpoint, which has the same stem."""


@dataclass(frozen=True)
class _Flags:
    """The flags of guided-diffusion that difflens reads."""

    num_head_channels: Annotated[int, Range(-1, 2**16)] = -1
    num_heads: Annotated[int, Range(-1, 2**16)] = -1
    image_size: Pixels | None = None
    use_new_attention_order: bool | None = None
    noise_schedule: ScheduleName | Literal["cosine"] | None = None
    diffusion_steps: int = 1000
    predict_xstart: bool = False


class Flagged(NamedTuple):
    """The configuration of a checkpoint with the flags beside it.

    Attributes:
        config: the options, and the flags that are options.
        stated: the names of the options that the flags state.
        side: the side of the images of its training, in pixels; None if the flags do not state it.
    """

    config: BackboneConfig
    stated: frozenset[str] = frozenset()
    side: int | None = None


def with_flags(config: BackboneConfig, path: Path) -> Flagged:
    """Return `config` with the flags of guided-diffusion in a file beside the checkpoint.

    The file has the checkpoint's name with the ending .json, .yaml or .yml, and guided-diffusion's names:
    `image_size`, `num_heads`, `num_head_channels`, `use_new_attention_order`, `noise_schedule`,
    `diffusion_steps` and `predict_xstart`. Without such a file, `config` is returned.

    Raises:
        DiffLensError: the file cannot be read, it contradicts an option that was given, or it states another
            number of noise steps than 1,000, or a network that predicts the image.
    """
    files = [path.with_suffix(ending) for ending in FLAGS]
    file = next((each for each in files if each.exists()), None)
    if file is None:
        return Flagged(config)
    flags = read_yaml(file, _Flags)  # JSON is YAML
    if flags.diffusion_steps != 1000:
        raise DiffLensError(f"{file} says diffusion_steps {flags.diffusion_steps:,}: difflens reads 1,000")
    if flags.predict_xstart:
        raise DiffLensError(f"{file} says predict_xstart: difflens reads networks that predict the noise")
    usual = BackboneConfig(config.spec)
    stated: dict[str, Any] = {}
    if flags.num_head_channels > 0:  # guided-diffusion: -1 means a fixed number of heads
        stated["num_head_channels"] = flags.num_head_channels
    elif flags.num_heads > 0:
        stated["num_heads"] = flags.num_heads
    if flags.use_new_attention_order is not None:
        stated["attention_order"] = "new" if flags.use_new_attention_order else "legacy"
    if flags.noise_schedule is not None:
        cosine = flags.noise_schedule == "cosine"
        stated["noise_schedule"] = "squaredcos_cap_v2" if cosine else flags.noise_schedule
    for name, value in stated.items():
        given = getattr(config, name)
        if given not in (getattr(usual, name), value):
            option = f"--{name.replace('_', '-')}"
            raise DiffLensError(f"{file} says {name} {value!r}, and {option} says {given!r}")
    return Flagged(replace(config, **stated), frozenset(stated), flags.image_size)


def _is_state_dict(entry: object) -> bool:
    return (
        isinstance(entry, Mapping)
        and bool(entry)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entry.items())
    )


def _read_safetensors(path: Path) -> Any:
    try:
        return read_tensors(path)
    except DiffLensError as error:
        raise DiffLensError(
            f"{path} cannot be read as safetensors ({error}): it is truncated or of another format; "
            "copy it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        # training scripts of DiT, SiT and REPA store their arguments, a plain container, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            # only the zip format, torch's since 1.6, can be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can fail in any way
        if code := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error)):
            raise DiffLensError(
                f"{path} was refused, never run: it holds more than tensors, and loading it would call "
                f"{code[1]}; in the program that wrote it, convert it to .safetensors"
            ) from error
        raise DiffLensError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}): it is truncated, of "
            "another format, or a pickle with code, which is refused, never run; copy it again or convert it "
            "to .safetensors"
        ) from error
