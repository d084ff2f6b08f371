"""Files that are damaged on purpose: as a whole, and field by field."""

import contextlib
import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from difflens import DiffLensError

GIBIBYTE = 2**30
SECONDS = 10
REMOVED: Any = ...
"""In place of the value of a field that is taken out."""

Place = tuple[Any, ...]

_WRONG = (
    *(REMOVED, None, "", "text", "\ud800", "../..", True, [], {}, [[]], {"a": {"b": []}}),
    *(-1, 0, 1.5, 10**18, 10**400, float("nan"), float("inf")),
)
_NESTED = "[" * 100_000 + "]" * 100_000


def whole(content: bytes) -> dict[str, bytes | str]:
    """Damaged files by name; text stands for a file that is no regular one."""
    return {
        "empty": b"",
        "halved": content[: len(content) // 2],
        "no UTF-8": b"\xff\xfe" + content,
        "nested": _NESTED.encode(),
        "a number": b"7",
        "a pipe": "fifo",
        "a folder": "folder",
        "a device": "device",
    }


def places(value: Any, before: Place = ()) -> Iterator[Place]:
    """The way to each field; of long lists only to the first two."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, item) in enumerate(items):
        if isinstance(value, list) and number > 1:
            return
        yield (*before, key)
        yield from places(item, (*before, key))


def damages(content: Any) -> st.SearchStrategy[tuple[Place, Any]]:
    """A field of a JSON value, and what takes its place."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        leaves, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8
    )
    return st.tuples(st.sampled_from([*places(content)]), st.sampled_from(_WRONG) | values)


def changed(content: Any, place: Place, value: Any) -> Any:
    """A copy of a JSON value with another value at one place."""
    result = copy.deepcopy(content)
    owner = result
    for key in place[:-1]:
        owner = owner[key]
    if value is REMOVED:
        del owner[place[-1]]
    else:
        owner[place[-1]] = value
    return result


def as_bytes(path: Path, content: Any) -> bytes:
    if path.suffix == ".yaml":
        return yaml.safe_dump(content, sort_keys=False).encode("utf-8", "surrogatepass")
    return json.dumps(content).encode()


@contextlib.contextmanager
def replaced(path: Path, content: bytes | str) -> Iterator[None]:
    """Put other content, or a file that is no regular one, in the place of a file, and undo it."""
    kept = path.with_name(path.name + ".kept")
    path.rename(kept)
    try:
        if content == "fifo":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        elif content == "device":
            path.symlink_to("/dev/zero")
        else:
            assert isinstance(content, bytes)
            path.write_bytes(content)
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let nothing take longer than `SECONDS`, or two more gibibytes of address space."""

    def stop(*_: object) -> None:
        pytest.fail(f"took more than {SECONDS} seconds")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * GIBIBYTE, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def refusal(read: Callable[[], object]) -> str | None:
    """The line that refuses a file, after which no file in the working directory has changed; None if `read`
    went to its end."""
    before = _state()
    try:
        with bounded():
            read()
    except DiffLensError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 2000
        assert _state() == before
        return message
    return None


def _state() -> dict[Path, tuple[int, int]]:
    """Size and time of every file and folder in the working directory."""
    found = {path: path.lstat() for path in Path().rglob("*")}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}
