"""Checkpoint files, read without running code."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from difflens.backbones.config import BackboneConfig
from difflens.errors import DiffLensError, listing


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a `.safetensors`, `.pt`, `.pth` or `.bin` file, on the CPU.

    A training checkpoint may hold the tensors one level down, under "ema", "state_dict" or "model"; the first
    of these is taken. A "module." before every name is dropped. Large files are mapped, not copied.

    Raises:
        DiffLensError: the file does not exist, is no checkpoint, is truncated, or is a pickle that needs code
            to load. Such a pickle is refused, and nothing in it is run.
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
    elif path.suffix in (".pt", ".pth", ".bin"):
        content = _read_pickle(path)
    else:
        raise DiffLensError(f"{path} is not a checkpoint: expected .safetensors, .pt, .pth or .bin")
    entries = content if isinstance(content, Mapping) else {}
    state = next(filter(_is_state_dict, (content, *map(entries.get, ("ema", "state_dict", "model")))), None)
    if state is None:
        held = [f"{key!r} ({type(value).__name__})" for key, value in entries.items()]
        raise DiffLensError(
            f"{path} is not a state dict, that is a dict of tensors by parameter name: it holds "
            f"{listing(held) or f'one {type(content).__name__}'}"
        )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items()}


def with_flags(config: BackboneConfig, path: Path) -> BackboneConfig:
    """Return `config` with the flags of guided-diffusion in a file beside the checkpoint.

    The file has the checkpoint's name with the ending .json, .yaml or .yml, and guided-diffusion's names:
    `num_heads`, `num_head_channels`, `use_new_attention_order`, `noise_schedule` and `class_cond`. Without
    such a file, `config` is returned.

    Raises:
        DiffLensError: the file cannot be read, or it contradicts an option that was given.
    """
    files = [path.with_suffix(ending) for ending in (".json", ".yaml", ".yml")]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        return config
    try:
        flags = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DiffLensError(f"{file}, the flags of {path.name}, cannot be read: {error}") from error
    if not isinstance(flags, dict):
        raise DiffLensError(f"{file}, the flags of {path.name}, holds no table of flags")
    usual = BackboneConfig(config.spec)
    stated: dict[str, Any] = {}
    channels, heads = flags.get("num_head_channels"), flags.get("num_heads")
    if isinstance(channels, int) and channels > 0:  # guided-diffusion: -1 means a fixed number of heads
        stated["num_head_channels"] = channels
    elif isinstance(heads, int) and heads > 0:
        stated["num_heads"] = heads
    if "use_new_attention_order" in flags:
        stated["attention_order"] = "new" if flags["use_new_attention_order"] is True else "legacy"
    if "noise_schedule" in flags:
        stated["noise_schedule"] = {"cosine": "squaredcos_cap_v2"}.get(
            flags["noise_schedule"], flags["noise_schedule"]
        )
    for name, value in stated.items():
        given = getattr(config, name)
        if given not in (getattr(usual, name), value):
            option = f"--{name.replace('_', '-')}"
            raise DiffLensError(f"{file} says {name} {value!r}, and {option} says {given!r}")
    return replace(config, **stated)


def _is_state_dict(entry: object) -> bool:
    return (
        isinstance(entry, Mapping)
        and bool(entry)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entry.items())
    )


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError or ValueError: it depends on the damage
        raise DiffLensError(
            f"{path} cannot be read as safetensors ({error}): it is truncated or of another format; "
            "copy it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
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
