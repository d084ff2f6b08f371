"""Hardware and versions of a run, for the last table of its report."""

import platform

import diffusers
import torch

from difflens.errors import counted
from difflens.version import __version__


def environment(device: torch.device) -> dict[str, str]:
    """Return hardware and versions as rows of a report's table.

    Args:
        device: the device of the run.
    """
    return {
        "Hardware": _hardware(device),
        "Versions": f"difflens {__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"Python {platform.python_version()}",
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    host = f"{counted(threads, 'CPU thread')} ({platform.machine()})"
    return host if device.type == "cpu" else f"{device.type}, {host}"
