"""Options of `difflens predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from difflens.choices import OnBadImage


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Ask a trained model about image files: for classes, or for overlays of what it sees where."""

    model: tyro.conf.Positional[Path]
    """A run's model/ folder, or the run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders that are searched for images."""
    out: Path | None = None
    """Of a model of segment or detect: folder for overlays, masks and predictions.json. None: predictions."""
    top: int = 3
    """How many classes to show."""
    format: Literal["table", "json", "csv"] = "table"
    """json and csv give the probability of every class; of a model of segment or detect json gives everything."""
    draws: int = 1
    """Average over so many noises: slower, steadier."""
    backbone: str | None = None
    """Where the backbone is now, if it has moved."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read, and says so on standard error."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
