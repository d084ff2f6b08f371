"""Image files in folders, and text files beside them."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from difflens.data.images import EXTENSIONS, is_image
from difflens.errors import DiffLensError, counted, listing
from difflens.run.console import note

_MOST_TEXT = 2**28
"""The largest size of a list in bytes: a line for each image of the largest data sets."""
TREE = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE), or CLASS/IMAGE with --val-fraction"


def cache_folder() -> Path:
    """Return the folder of downloads and of known digests: $DIFFLENS_CACHE, or ~/.cache/difflens."""
    return Path(os.environ.get("DIFFLENS_CACHE") or "~/.cache/difflens").expanduser()


def folder_name(folder: Path) -> str:
    """Return the name of a folder, also of `.` and of a path that ends with `..`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def list_images(paths: Iterable[Path | str]) -> list[Path]:
    """Return the image files that `paths` name: files as given, and the images in folders and subfolders,
    sorted.

    Raises:
        DiffLensError: a path does not exist, a folder has no images, or there are no paths.
    """
    found: dict[Path, None] = {}
    others = Others()
    for path in map(Path, paths):
        if not path.exists():
            raise DiffLensError(f"no such file or folder: {path}")
        found |= dict.fromkeys(find_images(path, others) if path.is_dir() else [path])
    others.tell()
    if not found:
        raise DiffLensError("no images given; give image files or folders of them")
    return list(found)


# the files by which the archives for Python are known
_CIFAR = {"CIFAR10": ("data_batch_1", "batches.meta"), "CIFAR100": ("train", "test", "meta")}


# thumbnails of Synology's servers, and what macOS puts into archives
_MADE = ("@eaDir", "__MACOSX")


class Others(Counter[str]):
    """The files of data folders that are no images: their number by suffix."""

    def tell(self) -> None:
        """Print one line that counts and names them, if there are any."""
        if self:
            kinds = [f"{suffix} ({count:,})" for suffix, count in sorted(self.items())]
            verb = "are" if self.total() > 1 else "is"
            note(
                f"{counted(self.total(), 'file')} {verb} left out, as not of a format that is read: "
                f"{listing(kinds)}"
            )


def find_images(folder: Path, others: Others | None = None, whole: Path | None = None) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted.

    A file is an image by its suffix, or without one by its content: RAW files and copies of editors hold
    images, too. Links are followed, but not to parts and parents of `whole`. Hidden files are ignored, and
    folders that systems make (`_MADE`).

    Args:
        others: receives the files that are no images, for a line about several folders; None: the line is
            printed here.
        whole: the folder of all classes, whose images a link would bring in twice; None: `folder`.

    Raises:
        DiffLensError: there are none, or a folder cannot be read.
    """
    found: list[Path] = []
    here = Others()
    root = os.path.realpath(whole or folder)
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(where)
        if real in seen:  # by two links
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or name in _MADE or _leads_back(Path(where, name), root))
        )
        for path in (Path(where, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in EXTENSIONS or (not path.suffix and is_image(path)):
                found.append(path)
            else:
                here[path.suffix.lower() or "no suffix"] += 1
    if not found:
        what = f"only files of type {listing(sorted(here))}" if here else "no files"
        raise DiffLensError(f"no images in {folder}: {what}; images end in {', '.join(EXTENSIONS)}")
    if others is None:
        here.tell()
    else:
        others.update(here)
    return sorted(found)


def _leads_back(path: Path, root: str) -> bool:
    """Return True for a link to a folder that is within the real path `root`, or contains it."""
    if not path.is_symlink():
        return False
    real = os.path.realpath(path)
    return os.path.commonpath((real, root)) in (real, root)


def require_regular(path: Path, what: str) -> None:
    """Raise DiffLensError for a folder, a pipe or a device, which could hold the program for ever.

    Args:
        what: the content of the file, for the message.
    """
    if path.exists() and not path.is_file():
        raise DiffLensError(f"{path} is not a regular file; expected {what}")


def read_lines(path: Path, what: str, files: bool = False) -> list[str]:
    """Return the lines of a text file in UTF-8, with or without a byte order mark, without surrounding space.

    Args:
        what: the content of the file, for messages.
        files: True for names of files, which keep bytes that are not UTF-8, as the names in folders do.

    Raises:
        DiffLensError: the file is missing, no regular file, too large, or no text.
    """
    try:
        require_regular(path, what)
        if (size := path.stat().st_size) > _MOST_TEXT:
            raise DiffLensError(
                f"{path} has {counted(size, 'byte')}; expected {what}, at most {_MOST_TEXT:,} bytes"
            )
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape" if files else "strict")
    except FileNotFoundError:
        raise DiffLensError(f"there is no {path}; expected {what}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = f"not a text file in UTF-8 ({error.reason})"
        raise DiffLensError(f"{path}, line {line}: {reason}; expected {what}") from error
    except OSError as error:
        raise DiffLensError(f"{path} cannot be read ({error.strerror}); expected {what}") from error
    if "\0" in text:
        raise DiffLensError(f"{path} is not a text file in UTF-8; expected {what}")
    # not splitlines(), which also ends a line at characters that a name may hold
    return [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def require_folder(path: Path) -> None:
    """Raise DiffLensError unless `path` is a folder."""
    if not path.exists():
        raise DiffLensError(f"no such folder: {path}")
    if not path.is_dir():
        raise DiffLensError(f"{path} is a file; expected a folder with {TREE}")


def refuse_batches(folder: Path) -> None:
    """Raise DiffLensError for the folder that CIFAR's archive for Python unpacks to, or one that holds it.

    Its files are pickles, which are not opened here: torchvision checks their digests first.
    """
    for where in (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python"):
        for name, files in _CIFAR.items():
            if all((where / file).is_file() for file in files):
                raise DiffLensError(
                    f"{where} holds CIFAR's batches for Python ({listing(files)}), which are no images: "
                    f"--data torchvision:{name} reads this data set"
                )


def _unreadable(error: OSError) -> NoReturn:
    raise DiffLensError(f"cannot read the folder {error.filename}: {error.strerror}") from error
