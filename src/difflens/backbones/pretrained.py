"""Networks in diffusers format: their files, read strictly, and their digest."""

import hashlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import nn

from difflens.errors import DiffLensError, counted, listing
from difflens.ranges import Pixels, Range, Width
from difflens.run import reading
from difflens.run.console import warn
from difflens.run.reading import FieldError, check_files, checked, reason, short
from difflens.run.seeding import seeded

# shards have a number, before the variant in some files and behind it in others
_WEIGHTS = r"diffusion_pytorch_model(\.(fp16|bf16))?(-\d{5}-of-\d{5})?(\.(fp16|bf16))?\.(safetensors|bin)"
_MOST = 2**24  # any whole number of a configuration
_MOST_LAYERS = 1000
_MOST_POSITIONS = 1024  # patches along a side; their table is made at once, whatever the device
_POSITIONS = ("sample_size", "pos_embed_max_size", "pos_embed_seq_len")


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        problem: the start of the error message, what the file's absence or damage means.

    Raises:
        DiffLensError: the file does not exist, or holds no JSON object.
    """
    try:
        return reading.read_json(path, dict[str, Any])
    except DiffLensError as error:
        raise DiffLensError(f"{problem}: {error}") from error


def read_config(folder: Path, problem: str) -> dict[str, Any]:
    """Return the content of the config.json of a network of diffusers.

    Args:
        problem: as for `read_json`.

    Raises:
        DiffLensError: as for `read_json`, or a field that difflens reads itself, or a number, is wrong.
    """
    config = read_json(folder / "config.json", problem)
    check_config(config, folder / "config.json")
    return config


def check_config(config: dict[str, Any], file: Path) -> None:
    """Check the content of a network's config.json.

    Raises:
        DiffLensError: a field that difflens reads itself, or a number, is wrong, or the weights are
            quantised.
    """
    try:
        checked(_NetworkFields, {name: config[name] for name in _NETWORK_FIELDS if name in config})
        check_numbers(config)
    except FieldError as error:
        raise DiffLensError(f"{file}: {error}") from error
    refuse_quantised(config, file)


def refuse_quantised(config: Mapping[str, Any], file: Path) -> None:
    """Raise DiffLensError for the configuration of a network whose weights are quantised."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        known = f" ({method})" if isinstance(method, str) else ""
        raise DiffLensError(
            f"{file} says that the weights are quantised{known}: difflens reads float weights"
        )


def read_network(
    kind: Any, folder: Path, config: dict[str, Any], *, fresh: bool = False, meta: bool = False
) -> Any:
    """Return a network of diffusers in float32.

    Args:
        kind: its class.
        folder: holds config.json and the weights.
        config: the result of `read_config`.
        fresh: use the weights of a new network (seed 0) instead of those of the folder.
        meta: make the network on the meta device, without weights.

    Raises:
        DiffLensError: the configuration makes no network, or the weights are damaged or do not belong to it.
    """
    check_files(folder)
    try:
        _check_types(config, kind)
    except FieldError as error:
        raise DiffLensError(f"{folder / 'config.json'}: {error}") from error
    outline = outline_of(folder / "config.json", config, kind.from_config)
    if meta:
        return outline
    check_size(outline, folder, fresh)
    if fresh:
        with seeded():
            return kind.from_config(config)
    _check_names(folder)
    variant = variant_of(folder)
    try:
        network, info = kind.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=_has_safetensors(folder, variant),
            torch_dtype=torch.float32,
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except Exception as error:  # and for damaged weights
        raise DiffLensError(f"the weights in {folder} cannot be loaded: {reason(error)}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise DiffLensError(
            f"the weights in {folder} do not belong to its config.json: {counted(len(wrong), 'parameter')} "
            f"{'is' if len(wrong) == 1 else 'are'} missing, "
            f"left over or of another shape, {wrong[0]} for example"
        )
    return network


def outline_of(file: Path, config: Mapping[str, Any], make: Callable[[dict[str, Any]], Any]) -> Any:
    """Return what `make` makes of a configuration on the meta device: a network without weights.

    Raises:
        DiffLensError: it makes nothing of it; the message names the field without which it would.
    """

    def made(fields: dict[str, Any]) -> Any:
        with torch.device("meta"):
            return make(fields)

    try:
        return made(dict(config))
    except Exception as error:  # diffusers and transformers raise many types for what cannot be right
        message = reason(error)
        if not any(name in message for name in config):
            message = _blamed(config, made) + message
        raise DiffLensError(f"{file}: {message}") from error


def _blamed(config: Mapping[str, Any], made: Callable[[dict[str, Any]], Any]) -> str:
    """Return the field whose default would be right, and its value, in words; "" if there is none."""
    for name in config:
        with suppress(Exception):
            made({other: value for other, value in config.items() if other != name})
            return f"{name} is {short(config[name])}: "
    return ""


@dataclass(frozen=True)
class _NetworkFields:
    """The fields of a network of diffusers that difflens reads itself; diffusers checks the others."""

    _class_name: str | None = None
    in_channels: Width | None = None
    out_channels: Width | None = None
    latent_channels: Width | None = None
    sample_size: Pixels | tuple[Pixels, Pixels] | None = None
    patch_size: Pixels | None = None
    block_out_channels: tuple[Width, ...] | None = None
    norm_num_groups: Width | None = None
    scaling_factor: Annotated[float, Range(1e-12)] | None = None
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[Annotated[float, Range(1e-12)], ...] | None = None


_NETWORK_FIELDS = [field.name for field in fields(_NetworkFields)]


def _check_types(config: Mapping[str, Any], network: Any) -> None:
    """Refuse text where a network's argument is a number, and the like; of lists, each item is checked."""
    construct = inspect.unwrap(network.__init__)
    hints, defaults = get_type_hints(construct), inspect.signature(construct).parameters
    for name in (name for name in hints if name in config):
        leaves = {type(None), *_leaves(type(defaults[name].default)), *_leaves(hints[name])}
        for item in _items(config[name]):
            kind = float if type(item) is int and float in leaves else type(item)
            whole = kind is float and int in leaves and float(item).is_integer()
            if kind not in leaves and not whole:
                known = listing(sorted(leaf.__name__ for leaf in leaves - {type(None)}))
                raise FieldError(f"{name} is {short(config[name])}: it must be of the type {known}")


def _leaves(hint: Any) -> Iterator[type]:
    """Yield the types in a type hint, `list` for any sequence."""
    if get_origin(hint) in (tuple, list, Sequence):
        yield list
    elif isinstance(hint, type):
        yield list if hint is tuple else hint
    for part in get_args(hint):
        yield from (type(part),) if isinstance(part, str) else _leaves(part)


def _items(value: Any) -> Iterator[Any]:
    """Yield a value, and the values in a list."""
    yield value
    for item in value if isinstance(value, list) else ():
        yield from _items(item)


def check_numbers(value: Any, name: str = "") -> None:
    """Refuse numbers of layers, and other whole numbers, beyond those of any network, and NaN and infinity.

    Raises:
        FieldError: names the field.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_numbers(item, f"{name}[{number}]")
    elif isinstance(value, int):
        many = "layers" in name and "dim" not in name
        most = _MOST_LAYERS if many else _MOST_POSITIONS if name in _POSITIONS else _MOST
        if abs(value) > most:
            raise FieldError(f"{name} is {short(value)}: it must be at most {most:,}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(f"{name} is {value}: it must be a finite number")


def check_size(outline: nn.Module, folder: Path, fresh: bool) -> None:
    """Refuse a network that its weights cannot fill, or that does not fit into memory."""
    count = sum(parameter.numel() for parameter in outline.parameters())
    weights = sum(path.stat().st_size for end in ("safetensors", "bin") for path in folder.glob(f"*.{end}"))
    described = f"{folder / 'config.json'} describes a network of {counted(count, 'parameter')}"
    if not fresh and weights and count > 2 * weights + 2**16:
        raise DiffLensError(
            f"{described}, and its weights have {counted(weights, 'byte')}: they do not belong to it"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
    if 4 * count > memory:
        raise DiffLensError(f"{described}, which take more than this machine's memory")


def _check_names(folder: Path) -> None:
    """Refuse weights under names that are not read, as of another variant."""
    held = sorted(path.name for end in ("safetensors", "bin", "msgpack") for path in folder.glob(f"*.{end}"))
    if held and not any(re.fullmatch(_WEIGHTS, name) for name in held):
        raise DiffLensError(f"{folder} has no weights under a name that is read: it holds {listing(held)}")


def variant_of(folder: Path) -> str | None:
    """Return "fp16" or "bf16" for a folder that holds weights of this variant only."""
    names = [path.name for ending in ("safetensors", "bin") for path in folder.glob(f"*.{ending}")]
    for variant, title in (("fp16", "float16"), ("bf16", "bfloat16")):
        # shards have a number behind the variant
        if names and all(re.search(rf"\.{variant}[.-]", name) for name in names):
            warn(f"{folder} holds weights in {title} only: they are read as float32, rounded as they are")
            return variant
    return None


def _has_safetensors(folder: Path, variant: str | None) -> bool:
    """Return True if a folder holds safetensors files of this variant, in one file or in shards."""
    matches = (re.fullmatch(_WEIGHTS, path.name) for path in folder.glob("*.safetensors"))
    return any(match and (match[2] or match[5]) == variant for match in matches)


def digest_of(network: nn.Module, *described: bytes) -> str:
    """Return a hex digest of a network's description and of the names and values of all its weights."""
    digest = hashlib.sha256(b"".join(described))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
