"""The content of files: their checksums, which are kept in one file while none of them changes."""

import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from difflens.data.files import cache_folder
from difflens.errors import DiffLensError
from difflens.run.console import first_process, progress_bar
from difflens.run.files import checksum, write_bytes

# the clock of a file system is coarse: a change soon after another may leave all times as they are
_SETTLED_SECONDS = 2.0
_THREADS = 8
_CHUNK = 4096
_BYTES = 32
_UNREADABLE = bytes(_BYTES)


def content_digest(paths: Sequence[Path]) -> str:
    """Return a hex digest of the content of files, in this order; files that cannot be read are alike."""
    digest = sha256()
    for each in checksums(paths):
        digest.update(b"-" if each == _UNREADABLE else each.hex().encode())
    return digest.hexdigest()


def checksums(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 of each file, 32 bytes; those of files that cannot be read are zero.

    They are kept in `cache_folder()`/checksums. The files are read again once the path, size, inode, time of
    modification or time of change of one of them is another.
    """
    now = time.time()
    states = [_state(path) for path in paths]
    key = sha256()
    for path, state in zip(paths, states, strict=True):
        key.update(f"{str(path.absolute())!r} {state}\n".encode())
    kept = cache_folder() / "checksums" / key.hexdigest()
    with suppress(OSError):
        known = kept.read_bytes()
        if len(known) == _BYTES * len(paths):
            return [known[start : start + _BYTES] for start in range(0, len(known), _BYTES)]
    found: list[bytes] = []
    with progress_bar(first_process() and len(paths) > _CHUNK) as bar, ThreadPoolExecutor(_THREADS) as pool:
        task = bar.add_task("checksums of the images", total=len(paths), note="")
        for start in range(0, len(paths), _CHUNK):
            for each in pool.map(_checksum, paths[start : start + _CHUNK]):
                found.append(each)
                bar.update(task, advance=1)
    changes = (when / 1e9 for state in states if state for when in state[2:])
    if all(abs(now - when) > _SETTLED_SECONDS for when in changes):
        with suppress(DiffLensError):  # without a cache the files are read again
            write_bytes(kept, b"".join(found))
    return found


def _state(path: Path) -> tuple[int, ...]:
    """Return size, inode, and times of modification and change in nanoseconds; () for no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    regular = stat.S_ISREG(found.st_mode)
    return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns) if regular else ()


def _checksum(path: Path) -> bytes:
    try:
        return bytes.fromhex(checksum(path)) if path.is_file() else _UNREADABLE
    except (OSError, ValueError):
        return _UNREADABLE
