"""Image files that a command reads by name, without splits or labels."""

from dataclasses import dataclass
from pathlib import Path

from difflens.data.content import content_digest


@dataclass(frozen=True)
class PictureFiles:
    """Image files in a fixed order.

    Attributes:
        name: the title in reports.
        paths: the files.
    """

    name: str
    paths: tuple[Path, ...]

    def fingerprint(self) -> str:
        """Return a hex digest of the files' content."""
        return content_digest(self.paths)

    def former_fingerprint(self) -> str:
        """Return the fingerprint: version 0.1 had no command that reads files by name alone."""
        return self.fingerprint()
