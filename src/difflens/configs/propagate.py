"""Options of `difflens propagate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from difflens import presets
from difflens.configs.match import CorrespondenceOptions, Temperature
from difflens.configs.options import BackboneOptions, Count, PrecisionOptions, Range, RunOptions

_RECIPE: dict[str, Any] = {"context": 7, "neighbours": 5, "radius": 12, "temperature": 0.1}


@dataclass(frozen=True, kw_only=True)
class PropagateConfig(CorrespondenceOptions, PrecisionOptions, BackboneOptions, RunOptions):
    """Carry the mask of a sequence's first frame through all frames by the similarity of features.

    The protocol is that of DAVIS in Jabri et al. (2020) and DINO. Where other frames have masks too, J and F
    are measured.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.PROPAGATE

    frames: Path
    """Folder of frames, or of one folder for each sequence, such as DAVIS/JPEGImages/480p."""
    masks: Path
    """Folder of masks in the same arrangement, such as DAVIS/Annotations/480p. Values are objects, 0 is the
    background, 255 no label. Only the first frame's mask is carried; others are for measuring."""
    sequences: Path | None = None
    """Text file with the names of the sequences to read, one a line, such as DAVIS/ImageSets/2017/val.txt.
    None: all."""
    context: Count | None = None
    """Frames before the present one that labels come from, beside the first frame. None: the preset's, or
    7."""
    neighbours: Count | None = None
    """Most similar positions that a position takes its label from. None: the preset's, or 5."""
    radius: Annotated[int, Range(0, 10**4)] | None = None
    """Largest distance in cells of the feature map between a position and its neighbours; 0: any. None: the
    preset's, or 12."""
    temperature: Temperature | None = None
    """Temperature of the softmax over neighbours. None: the preset's, or 0.1."""
    score_last: bool = True
    """Measure the last frame too. DAVIS' own toolkit does not."""
    preset: str | None = None
    """dift-temporal: the place, draws and protocol of DIFT (Tang et al., 2023) on DAVIS, for OpenAI's
    256x256_diffusion_uncond.pt."""

    def recipe(self) -> Mapping[str, Any]:
        return {**_RECIPE, **super().recipe()}
