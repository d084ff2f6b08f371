"""Options of `difflens predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from difflens.choices import OnBadImage
from difflens.configs.options import Count, Options
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Options):
    """Ask a trained model about image files: for classes, or for overlays of what it sees where."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "images")
    HAS_DIRECTORY: ClassVar[bool] = False

    model: tyro.conf.Positional[Path]
    """A run's model/ folder, or the run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders that are searched for images."""
    out: Path | None = None
    """Of a model of segment or detect: folder for overlays, masks and predictions.json. None: predictions."""
    top: Count = 3
    """Classes to show."""
    draws: Count = 1
    """Noise samples that the probabilities are averaged over: slower, steadier."""
    format: Literal["table", "json", "csv"] = "table"
    """json and csv give the probability of every class; of a model of segment or detect json gives everything."""
    backbone: str | None = None
    """Where the backbone is now, if it has moved."""
    on_bad_image: OnBadImage = "error"
    """skip leaves out images that cannot be read, and lists them on standard error."""
    device: Literal["cpu"] | None = None
    """cpu keeps the computation off the GPU."""

    def check(self) -> None:
        if not self.images:
            raise DiffLensError("no images given: name image files or folders of images after the model")
