"""Test images that are copies of training images."""

from difflens.data.split import ImageSplit
from difflens.errors import counted
from difflens.run.console import note


def copies(train: ImageSplit, test: ImageSplit) -> str:
    """Return in words how many images of `test` are copies of images of `train`; empty if none is known.

    Files are compared byte by byte, and images in memory pixel by pixel. Images that a library gives decoded
    are not compared.
    """
    known, held_out = (split.checksums(range(len(split))) for split in (train, test))
    if not known or not held_out:
        return ""
    place = {each: row for row, each in enumerate(known) if any(each)}
    found = [(row, place[each]) for row, each in enumerate(held_out) if each in place]
    if not found:
        return ""
    row, original = found[0]
    first = f"the first is {test.ids[row]}, of {train.ids[original]}"
    count = counted(len(test), f"{test.name} image")
    return f"copies of training images: {len(found):,} of {count}; {first}"


def say_copies(train: ImageSplit, test: ImageSplit) -> str:
    """Return `copies`, and say them in a line."""
    text = copies(train, test)
    if text:
        note(f"warning: {text}; scores count images that were trained on")
    return text
