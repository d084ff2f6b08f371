"""Options of `difflens scenes`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difflens.choices import Background
from difflens.configs.options import MAY_CHANGE, Range, SeedOptions, Share
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(SeedOptions):
    """Compose a labelled data set of scenes from cut-out objects, for `segment` and `detect`."""

    out: Annotated[Path, MAY_CHANGE]
    """Folder for the data set, which must be empty or new."""
    source: str = "fashion"
    """The cut-out objects: fashion (the bundled items), or a folder of images with transparency,
    FOLDER/CLASS/IMAGE."""
    train: Annotated[int, Range(1, 10**7)] = 2000
    """Number of scenes to train on."""
    val: Annotated[int, Range(1, 10**7)] = 500
    """Number of scenes, with other objects, to evaluate on."""
    size: Annotated[int, Range(8, 4096)] = 64
    """Side of the square scenes, in pixels."""
    objects: tuple[Annotated[int, Range(0, 100)], Annotated[int, Range(1, 100)]] = (1, 4)
    """The fewest and the most objects drawn for a scene. One without a free place is left out."""
    scale: tuple[Annotated[float, Range(0.02, 1)], Annotated[float, Range(0.02, 1)]] = (0.25, 0.55)
    """The smallest and the largest of an object's longer side, as a share of the scene's side, drawn
    uniformly."""
    visible: Share = 0.5
    """The smallest share of an object, 0 to 1, that stays visible behind later objects."""
    backgrounds: tuple[Background, ...] | None = None
    """Kinds of background, of which each scene draws one. None: plain and gradient, and photo with
    --photos."""
    photos: Path | None = None
    """Folder of photos for backgrounds; every fifth photo is for validation scenes. None: no photos."""

    def check(self) -> None:
        for name in ("objects", "scale"):
            least, most = getattr(self, name)
            if least > most:
                raise DiffLensError(f"--{name} takes the smaller number first, not {least:g} {most:g}")
        if self.backgrounds is not None and ("photo" in self.backgrounds) != (self.photos is not None):
            raise DiffLensError("photo backgrounds go with --photos FOLDER: give both or neither")
