"""Students of `difflens distill`: U-Nets of diffusers that read clean images and are told a fixed time."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from difflens.errors import DiffLensError
from difflens.processes.clean import Clean
from difflens.ranges import Natural
from difflens.run.files import write_text
from difflens.run.reading import read_json
from difflens.version import __version__

DISTILLED = "distilled.json"
"""The file that makes a folder with a network of diffusers that of a student."""


@dataclass(frozen=True)
class _Description:
    """distilled.json: the time that the network is told, and the version that wrote it."""

    time: Natural
    difflens: str


def write_distilled(folder: Path, process: Clean) -> None:
    """Mark a folder as that of a student."""
    text = json.dumps(asdict(_Description(process.time, __version__)), indent=2)
    write_text(folder / DISTILLED, text + "\n")


def distilled_process(folder: Path) -> Clean | None:
    """Return the process of a student's folder; None for another folder.

    Raises:
        DiffLensError: distilled.json is damaged, or the folder has a scheduler too.
    """
    path = folder / DISTILLED
    if not path.exists():
        return None
    if (folder / "scheduler").exists():
        raise DiffLensError(f"{folder} has a {DISTILLED} and a scheduler/, which belongs to another network")
    return Clean(read_json(path, _Description).time)
