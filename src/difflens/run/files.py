"""Atomic writing of files: a file is complete or does not exist."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def replace_with(target: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write a temporary file, and rename it to `target`; remove it if `writer` fails."""
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        writer(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_with(path, fill)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as a hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
