"""Options of `difflens info`."""

from dataclasses import dataclass
from typing import ClassVar

import tyro

from difflens.configs.options import CheckpointOptions


@dataclass(frozen=True, kw_only=True)
class InfoConfig(CheckpointOptions):
    """Describe a backbone: its network, noise process, blocks and default places."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("backbone",)
    HAS_DIRECTORY: ClassVar[bool] = False

    backbone: tyro.conf.Positional[str]
    """Any backbone that `probe` takes."""
    json: bool = False
    """Print one JSON object instead of text and a table."""
