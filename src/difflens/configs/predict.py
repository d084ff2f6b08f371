"""Options of `difflens predict`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from difflens.choices import OnBadImage
from difflens.configs.options import Count, Options, Share, Times
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Options):
    """Apply a trained model to image files: it gives classes, or overlays of segments or objects."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "images")
    HAS_DIRECTORY: ClassVar[bool] = False

    model: tyro.conf.Positional[Path]
    """The run directory of probe, segment or detect, or its model/ folder."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders, whose images are read with those of subfolders."""
    out: Path | None = None
    """Models of probe: file for --format csv or json; None: standard output. Models of segment or detect:
    folder for overlays, masks and predictions.json; None: the folder predictions."""
    threshold: Share | None = None
    """Least probability or score, 0 to 1. Below it an image has no class, a pixel has the value 255 for no
    class, and an object is left out. With several labels an image has all classes of this probability. None:
    0.5 for several labels, else nothing is left out, and overlays show objects with a score of at least 0.5,
    or else the best one."""
    top: Count = 3
    """Number of most probable classes in the table."""
    draws: Times = 1
    """Number of noise samples that the probabilities are averaged over. More samples take longer and vary
    less."""
    format: Literal["table", "json", "csv"] = "table"
    """Format of the output. json and csv give the probabilities of all classes; for models of segment or
    detect, json gives the content of predictions.json."""
    backbone: str | None = None
    """The backbone's new location, if it has moved. None: the location that the model stores."""
    on_bad_image: OnBadImage = "error"
    """error stops at the first image that cannot be read; skip leaves such images out and lists them on
    standard error."""
    device: Literal["cpu"] | None = None
    """cpu keeps the computation off the GPU. None: a GPU if there is one."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if self.format != "table":
            yield f"{self.format} holds every class", ("top",)

    def check(self) -> None:
        if not self.images:
            raise DiffLensError("no images given: name image files or folders of images after the model")
