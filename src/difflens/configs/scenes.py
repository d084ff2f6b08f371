"""Options of `difflens scenes`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difflens.choices import Background
from difflens.configs.options import MAY_CHANGE, Count, Range, SeedOptions, Share
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(SeedOptions):
    """Compose a labelled data set of scenes from cut-out objects, for `segment` and `detect`."""

    out: Annotated[Path, MAY_CHANGE]
    """Folder of the data set."""
    source: str = "fashion"
    """fashion (the bundled items), or a folder of images with transparency, FOLDER/CLASS/IMAGE."""
    train: Count = 2000
    """How many scenes to train on."""
    val: Count = 500
    """How many scenes, of other objects, to evaluate on."""
    size: Annotated[int, Range(8, 4096)] = 64
    """Side of the square scenes, in pixels."""
    objects: tuple[Annotated[int, Range(0, 100)], Annotated[int, Range(1, 100)]] = (1, 4)
    """The fewest and the most objects in a scene."""
    scale: tuple[Annotated[float, Range(0.02, 1)], Annotated[float, Range(0.02, 1)]] = (0.25, 0.55)
    """An object's longer side, as a share of the scene's, drawn uniformly between these."""
    visible: Share = 0.5
    """At least this share of every object stays visible behind later ones."""
    backgrounds: tuple[Background, ...] | None = None
    """Drawn among these. None: plain and gradient, and photo where there are photos."""
    photos: Path | None = None
    """Folder of photos to cut backgrounds from; every fifth is for validation scenes."""

    def check(self) -> None:
        for name in ("objects", "scale"):
            least, most = getattr(self, name)
            if least > most:
                raise DiffLensError(f"--{name} takes the smaller number first, not {least:g} {most:g}")
        if self.backgrounds is not None and ("photo" in self.backgrounds) != (self.photos is not None):
            raise DiffLensError("photo backgrounds go with --photos FOLDER: give both or neither")
