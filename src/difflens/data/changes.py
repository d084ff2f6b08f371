"""What a network's shape does to images: their colours, and their size if it changes more than twofold."""

from statistics import median

import torch

from difflens.data.images import BadImage
from difflens.data.split import ImageSplit
from difflens.run.console import note

_LOOKED_AT = 9  # images, evenly over the split


def changes(split: ImageSplit, channels: int, side: int, whole: bool = False) -> str:
    """Return in words how the images of `split` change for a network; empty if they hardly do.

    Only the headers of a few image files are read. Images that cannot be read are passed over.

    Args:
        channels, side: the shape that the network takes.
        whole: True for images whose longer side becomes `side`, False for those whose shorter side does.
    """
    shapes = _shapes(split)
    if not shapes:
        return ""
    found = []
    if channels == 1 and any(shape[0] == 3 for shape in shapes):
        found.append("colours become grey")
    if channels == 3 and any(shape[0] == 1 for shape in shapes):
        found.append("grey is repeated in three channels")
    length = round(median((max if whole else min)(shape[1:]) for shape in shapes))
    if not side <= 2 * length <= 4 * side:
        verb, which = "shrink" if length > side else "grow", "longer" if whole else "shorter"
        found.append(f"images {verb} from about {length} to {side} pixels on the {which} side")
    return "; ".join(found)


def channels_of(split: ImageSplit) -> int:
    """Return 3 if some of the images that are looked at are in colour, else 1."""
    return max((shape[0] for shape in _shapes(split)), default=1)


def _shapes(split: ImageSplit) -> list[tuple[int, int, int]]:
    """Return (C, H, W) of a few images, evenly over the split, of those that can be read."""
    shapes = []
    for row in torch.linspace(0, len(split) - 1, min(_LOOKED_AT, len(split))).long().tolist():
        try:
            shapes.append(split.shape(row))
        except BadImage:
            continue
    return shapes


def say_changes(split: ImageSplit, backbone: str, channels: int, side: int, whole: bool = False) -> str:
    """Return `changes`, and say them in a line that names the backbone."""
    text = changes(split, channels, side, whole)
    if text:
        note(f"{backbone} reads {channels} x {side} x {side}: {text}")
    return text
