"""Image files in folders."""

import os
from codecs import BOM_UTF8
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from difflens.data.images import EXTENSIONS
from difflens.errors import DiffLensError, listing

_TREE = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE)"


def list_images(paths: Iterable[Path | str]) -> list[Path]:
    """Return the image files that `paths` name: files as given, and the images in folders and subfolders,
    sorted.

    Raises:
        DiffLensError: a path does not exist, a folder has no images, or there are no paths.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DiffLensError(f"no such file or folder: {path}")
        found |= dict.fromkeys(find_images(path) if path.is_dir() else [path])
    if not found:
        raise DiffLensError("no images given; give image files or folders of them")
    return list(found)


def read_lines(path: Path) -> dict[int, str]:
    """Return the lines of a text file by their numbers, from 1, without surrounding spaces and blank lines.

    A byte order mark is no part of the first line.

    Raises:
        DiffLensError: the path is no regular file, or a line is not UTF-8.
        OSError: the file cannot be read.
    """
    path = path.expanduser()
    if path.exists() and not path.is_file():
        raise DiffLensError(f"{path} is not a file")
    found = {}
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            reason = f"not a text file in UTF-8 ({error.reason})"
            raise DiffLensError(f"{path}, line {number}: {reason}") from error
        if text:
            found[number] = text
    return found


def find_images(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted. Links are followed.

    Raises:
        DiffLensError: there are none, or a folder cannot be read.
    """
    found: list[Path] = []
    others: set[str] = set()
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(where)
        if real in seen:  # a link to a parent folder would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(where, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in EXTENSIONS:
                found.append(path)
            else:
                others.add(path.suffix or "none")
    if not found:
        what = f"only files of type {listing(sorted(others))}" if others else "no files"
        raise DiffLensError(f"no images in {folder}: {what}; images end in {', '.join(EXTENSIONS)}")
    return sorted(found)


def require_folder(path: Path) -> None:
    """Raise DiffLensError unless `path` is a folder."""
    if not path.exists():
        raise DiffLensError(f"no such folder: {path}")
    if not path.is_dir():
        raise DiffLensError(f"{path} is a file; expected a folder with {_TREE}")


def _unreadable(error: OSError) -> NoReturn:
    raise DiffLensError(f"cannot read the folder {error.filename}: {error.strerror}") from error
