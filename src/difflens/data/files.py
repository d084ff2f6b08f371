"""Image files in folders."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from difflens.data.images import EXTENSIONS
from difflens.errors import DiffLensError, listing

_TREE = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE)"


def cache_folder() -> Path:
    """Return the folder of downloads and of known digests: $DIFFLENS_CACHE, or ~/.cache/difflens."""
    return Path(os.environ.get("DIFFLENS_CACHE") or "~/.cache/difflens").expanduser()


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
