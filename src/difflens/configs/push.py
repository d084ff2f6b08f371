"""Options of `difflens push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from difflens.configs.options import Options
from difflens.errors import DiffLensError


@dataclass(frozen=True, kw_only=True)
class PushConfig(Options):
    """Upload a trained model with its card to the Hugging Face hub, or write what would be uploaded."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "repo")
    HAS_DIRECTORY: ClassVar[bool] = False

    model: tyro.conf.Positional[Path]
    """The run directory of probe, segment or detect, or its model/ folder."""
    repo: tyro.conf.Positional[str | None] = None
    """The repository, OWNER/NAME, which is created. None: with --out, nothing is uploaded."""
    with_backbone: bool = False
    """Add the backbone's files, so that the model needs no other file. Without it the backbone must be a
    bundled one, or one of the hub or of timm."""
    private: bool = False
    """Create a private repository."""
    out: Path | None = None
    """New folder for what would be uploaded. None: a temporary one."""

    def check(self) -> None:
        if self.repo is None and self.out is None:
            raise DiffLensError("name the repository, OWNER/NAME, or a folder with --out")
        if self.repo is not None and self.repo.count("/") != 1:
            raise DiffLensError(f"{self.repo!r} is no repository of the hub; it must be OWNER/NAME")
        if self.repo is None and self.private:
            raise DiffLensError("nothing is uploaded without a repository: leave out --private")
