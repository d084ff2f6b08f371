"""Options of `difflens scenes`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.choices import Background
from difflens.errors import DiffLensError, require


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Compose a labelled data set of scenes from cut-out objects, for `segment` and `detect`."""

    out: Path
    """Folder of the data set."""
    source: str = "fashion"
    """fashion (the bundled items), or a folder of images with transparency, FOLDER/CLASS/IMAGE."""
    train: int = 2000
    """How many scenes to train on."""
    val: int = 500
    """How many scenes, of other objects, to evaluate on."""
    size: int = 64
    """Side of the square scenes, in pixels."""
    objects: tuple[int, int] = (1, 4)
    """The fewest and the most objects in a scene."""
    scale: tuple[float, float] = (0.25, 0.55)
    """An object's longer side, as a share of the scene's, drawn uniformly between these."""
    visible: float = 0.5
    """At least this share of every object stays visible behind later ones."""
    backgrounds: tuple[Background, ...] | None = None
    """Drawn among these. None: plain and gradient, and photo where there are photos."""
    photos: Path | None = None
    """Folder of photos to cut backgrounds from; every fifth is for validation scenes."""
    seed: int = 0

    def checked(self) -> "ScenesConfig":
        """This, or a DiffLensError."""
        require(
            train=(self.train, 1, None), val=(self.val, 1, None), size=(self.size, 8, 4096),
            fewest_objects=(self.objects[0], 0, None), most_objects=(self.objects[1], max(1, self.objects[0]), 100),
            smallest_scale=(self.scale[0], 0.02, 1), largest_scale=(self.scale[1], self.scale[0], 1),
            visible=(self.visible, 0, 1), seed=(self.seed, 0, 2**31),
        )  # fmt: skip
        if self.backgrounds is not None and ("photo" in self.backgrounds) != (self.photos is not None):
            raise DiffLensError("photo backgrounds go with --photos FOLDER: give both or neither")
        return self
