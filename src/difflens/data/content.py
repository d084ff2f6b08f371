"""The content of files: one digest of many, which is kept in a small file while none of them changes."""

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


def content_digest(paths: Sequence[Path]) -> str:
    """Return a hex digest of the content of files, in this order; files that cannot be read are alike.

    It is kept in `cache_folder()`/content. The files are read again once the path, size, inode, time of
    modification or time of change of one of them is another.
    """
    now = time.time()
    states = [_state(path) for path in paths]
    key = sha256()
    for path, state in zip(paths, states, strict=True):
        key.update(f"{str(path.absolute())!r} {state}\n".encode())
    kept = cache_folder() / "content" / key.hexdigest()
    with suppress(OSError, ValueError):
        known = kept.read_text(encoding="utf-8")
        if len(bytes.fromhex(known)) == 32:
            return known
    digest = sha256()
    with progress_bar(first_process() and len(paths) > _CHUNK) as bar, ThreadPoolExecutor(_THREADS) as pool:
        task = bar.add_task("checksums of the images", total=len(paths), note="")
        for start in range(0, len(paths), _CHUNK):
            for each in pool.map(_checksum, paths[start : start + _CHUNK]):
                digest.update(each.encode())
                bar.update(task, advance=1)
    changes = (when / 1e9 for state in states if state for when in state[2:])
    if all(abs(now - when) > _SETTLED_SECONDS for when in changes):
        with suppress(DiffLensError):  # without a cache the files are read again
            write_bytes(kept, digest.hexdigest().encode())
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """Return size, inode, and times of modification and change in nanoseconds; () for no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    regular = stat.S_ISREG(found.st_mode)
    return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns) if regular else ()


def _checksum(path: Path) -> str:
    try:
        return checksum(path) if path.is_file() else "-"
    except (OSError, ValueError):
        return "-"
