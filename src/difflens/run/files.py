"""Writing files: a file is complete or does not exist, text is UTF-8, and a failure names the file."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

from difflens.errors import DiffLensError

_REASON = re.compile(r"I/O error: (.*?)(?: \(os error \d+\))?$")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Return a context that writes `target`.

    Raises:
        DiffLensError: the disk is full, the file is too large for a limit, or the like.
    """
    try:
        yield
    except OSError as error:
        raise _failure(target, error.strerror or str(error)) from error
    except SafetensorError as error:
        found = _REASON.search(str(error))
        raise _failure(target, found[1] if found else str(error)) from error
    except RuntimeError as error:  # torch.save hides the error of its file
        hidden = error.__context__
        if not isinstance(hidden, OSError):
            raise
        raise _failure(target, hidden.strerror or str(hidden)) from error


def _failure(target: Path, reason: str) -> DiffLensError:
    return DiffLensError(f"cannot write {target}: {reason}")


def replace_with(target: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write a temporary file, and rename it to `target`; remove it if `writer` fails.

    Raises:
        DiffLensError: the file cannot be written.
    """
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            writer(temporary)
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def check_writable(target: Path) -> None:
    """Make the folder of a file that is written at the end of long work, and write there for a moment.

    Raises:
        DiffLensError: the file could not be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=target.parent):
            pass


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; bytes of names that are not UTF-8 are escaped."""
    replace_with(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    replace_with(path, fill)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as a hex digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
