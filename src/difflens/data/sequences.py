"""Sequences of frames with masks of objects, in DAVIS' layout: a folder a sequence, or frames alone.

    FRAMES/SEQUENCE/00000.jpg     frames, in the order of their names, where 9 comes before 10
    MASKS/SEQUENCE/00000.png      the mask of the frame of this name; that of the first frame is needed

The value of a mask's pixel is its object, 0 the background, and 255 no label.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from difflens.data.content import content_digest
from difflens.data.files import find_images, folder_name, read_lines
from difflens.data.images import image_size
from difflens.errors import DiffLensError

_LAYOUT = "FRAMES/SEQUENCE/*.jpg and MASKS/SEQUENCE/*.png, or frames and masks directly in their folders"


@dataclass(frozen=True)
class Sequence:
    """Frames in order.

    Attributes:
        name: the folder's name.
        frames: the frames' files, at least two, of one size.
        masks: the masks' files by number of the frame; that of the first frame is among them.
    """

    name: str
    frames: tuple[Path, ...]
    masks: Mapping[int, Path]


@dataclass(frozen=True)
class SequenceSet:
    """Sequences by name.

    Attributes:
        name: the title in reports.
        sequences: at least one.
    """

    name: str
    sequences: tuple[Sequence, ...]

    def fingerprint(self) -> str:
        """Return a hex digest of names and content."""
        files = [path for each in self.sequences for path in (*each.frames, *each.masks.values())]
        names = "\n".join(path.name for path in files)
        return sha256(f"{names} {content_digest(files)}".encode(errors="surrogateescape")).hexdigest()

    def former_fingerprint(self) -> str:
        """Return the fingerprint: version 0.1 read no sequences."""
        return self.fingerprint()


def load_sequences(frames: Path, masks: Path, names: Path | None = None) -> SequenceSet:
    """Load sequences of frames and their masks.

    Args:
        frames, masks: folders of sequences, or of the frames and masks of one.
        names: a text file with the sequences to read, one a line, as DAVIS' ImageSets; None: all.

    Raises:
        DiffLensError: a folder or a listed sequence is missing, a sequence has fewer than two frames, frames
            of different sizes or no mask of its first frame, or two masks have one name.
    """
    for folder in (frames, masks):
        if not folder.is_dir():
            raise DiffLensError(f"no such folder: {folder}; expected {_LAYOUT}")
    folders = sorted(path for path in frames.iterdir() if path.is_dir() and path.name[0] != ".")
    if names is not None:
        wanted = [line for line in read_lines(names, "names of sequences, one a line", files=True) if line]
        missing = [name for name in wanted if frames / name not in folders]
        if missing or not wanted:
            what = f"names {missing[0]!r}, and there is no such folder in {frames}" if missing else "is empty"
            raise DiffLensError(f"{names} {what}")
        folders = [frames / name for name in dict.fromkeys(wanted)]
    if not folders:
        return SequenceSet(folder_name(frames), (_sequence(frames, masks),))
    return SequenceSet(folder_name(frames), tuple(_sequence(each, masks / each.name) for each in folders))


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts names by their letters and by the values of their numbers."""
    parts = re.split(r"([0-9]+)", path.as_posix())
    return [(int(part), "") if number % 2 else (0, part) for number, part in enumerate(parts)]


def _sequence(folder: Path, masks: Path) -> Sequence:
    files = tuple(sorted(find_images(folder), key=_in_order))
    if len(files) < 2:
        raise DiffLensError(f"{folder} has one frame; a sequence has two or more")
    if not masks.is_dir():
        raise DiffLensError(f"no such folder: {masks}; expected {_LAYOUT}")
    by_stem: dict[str, Path] = {}
    for mask in find_images(masks):
        if by_stem.setdefault(mask.stem, mask) != mask:
            raise DiffLensError(f"{mask}: {by_stem[mask.stem]} is a mask of this name already")
    stems = Counter(path.stem for path in files)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise DiffLensError(f"{folder} has two frames of the name {twice}")
    found = {number: by_stem[path.stem] for number, path in enumerate(files) if path.stem in by_stem}
    if 0 not in found:
        raise DiffLensError(f"{masks} has no mask of the first frame, {files[0].name}")
    sizes = {path: image_size(path) for path in (*files, *found.values())}
    for path, size in sizes.items():
        if size != sizes[files[0]]:
            (height, width), (first_height, first_width) = size, sizes[files[0]]
            raise DiffLensError(
                f"{path} is {width} x {height} pixels, the first frame {first_width} x {first_height}"
            )
    return Sequence(folder.name, files, found)
