"""Networks in diffusers format: their files, read strictly, and their digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difflens.errors import DiffLensError


def read_json(path: Path, problem: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        problem: the start of the error message, what the file's absence or damage means.

    Raises:
        DiffLensError: the file does not exist, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DiffLensError(f"{problem}: there is no {path.name} in {path.parent}") from None
    except (ValueError, OSError) as error:
        raise DiffLensError(f"{problem}: {path} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise DiffLensError(f"{problem}: {path} holds no JSON object")
    return content


def read_network(
    kind: Any, folder: Path, config: dict[str, Any], *, fresh: bool = False, meta: bool = False
) -> Any:
    """Return a network of diffusers in float32.

    Args:
        kind: its class.
        folder: holds config.json and the weights.
        config: the content of config.json.
        fresh: use the weights of a new network (seed 0) instead of those of the folder.
        meta: make the network on the meta device, without weights.

    Raises:
        DiffLensError: the configuration makes no network, or the weights are damaged or do not belong to it.
    """
    try:
        if meta:
            with torch.device("meta"):
                return kind.from_config(config)
        if fresh:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return kind.from_config(config)
        network, info = kind.from_pretrained(
            folder, torch_dtype=torch.float32, output_loading_info=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers raises many types for damaged weights and configurations
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DiffLensError(f"{folder} cannot be loaded: {reason}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise DiffLensError(
            f"the weights in {folder} do not belong to its config.json: {len(wrong)} parameters are missing, "
            f"left over or of another shape, {wrong[0]} for example"
        )
    return network


def digest_of(network: nn.Module, *described: bytes) -> str:
    """Return a hex digest of a network's description and of the names and values of all its weights."""
    digest = hashlib.sha256(b"".join(described))
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
