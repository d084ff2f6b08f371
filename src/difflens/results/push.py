"""The result of `difflens push`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from difflens.errors import counted
from difflens.results.base import Result


@dataclass(frozen=True, kw_only=True)
class PushResult(Result):
    """What was uploaded.

    Attributes:
        files: size in bytes of each file, by its path in the repository.
        out: the folder that holds them; None if they were temporary.
        url: the address of the repository; None if nothing was uploaded.
    """

    files: Mapping[str, int]
    out: Path | None = None
    url: str | None = None

    def summary(self) -> str:
        lines = [f"{name}: {counted(size, 'byte')}" for name, size in self.files.items()]
        lines += [f"Folder: {self.out}"] if self.out is not None else []
        lines += [f"Uploaded: {self.url}"] if self.url is not None else ["Nothing was uploaded."]
        return "\n".join(lines)
