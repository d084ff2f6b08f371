"""Options of `difflens presets`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from difflens.configs.options import Options

PresetCommand = Literal["probe", "pretrain", "segment", "detect", "match", "propagate"]


@dataclass(frozen=True, kw_only=True)
class PresetsConfig(Options):
    """List the recipes that --preset takes."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("of",)
    HAS_DIRECTORY: ClassVar[bool] = False

    of: tyro.conf.Positional[PresetCommand | None] = None
    """A command: probe, pretrain, segment, detect, match or propagate. None: all of them."""

    @property
    def function(self) -> str:
        return "list_presets"  # `difflens.presets` is the module of the tables
