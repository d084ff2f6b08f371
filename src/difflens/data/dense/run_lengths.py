"""Masks as COCO's run lengths (Lin et al., 2014), in whole numbers or compressed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from difflens.errors import DiffLensError


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (H, W), as COCO's run lengths, {"size": [H, W], "counts": [...]}.

    Runs go down the columns, and the first is a run of zeros.
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of `size` (H, W) that polygons or run lengths describe, as COCO's own tools draw it."""
    mask = mask_tools()
    encoded = mask.segmToRle(segmentation, size[1], size[0])
    decoded: NDArray[np.bool_] = mask.decode(encoded).astype(bool)
    return decoded


def encode(segmentation: Any, size: tuple[int, int]) -> bytes:
    """Return the mask of `size` (H, W) that polygons or run lengths describe as compressed run lengths."""
    counts: bytes = mask_tools().segmToRle(segmentation, size[1], size[0])["counts"]
    return counts


def area(counts: bytes, size: tuple[int, int]) -> int:
    """Return the number of pixels that a mask of `size` (H, W) covers; `counts` are from `encode`."""
    return int(mask_tools().area({"size": list(size), "counts": counts}))


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (H, W), as COCO's compressed run lengths, which JSON can hold."""
    encoded = mask_tools().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def mask_tools() -> Any:
    """Return the module `mask` of faster-coco-eval.

    Raises:
        DiffLensError: the package is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DiffLensError('detection needs `pip install "difflens[dense]"`') from error
    return mask


def runs_of(counts: list[int] | str) -> list[int]:
    """Return run lengths, which a text holds in the compressed form of COCO's tools.

    Raises:
        ValueError: the text is cut or damaged.
    """
    if isinstance(counts, list):
        return counts
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the text of the mask's counts is cut or damaged")
    # a number has five bits a character, the lowest first; bit 32 says that more follow, bit 16 is the sign
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise ValueError("the text of the mask's counts is damaged: a run has more than 32 bits")
    place = np.arange(len(codes)) - np.repeat(first, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    runs -= np.where(codes[last] & 16, 1 << (5 * lengths), 0)
    # from the fourth number on, each is the difference from the number two places before
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    if runs.min() < 0:
        raise ValueError("the text of the mask's counts is damaged: a run is negative")
    return [int(run) for run in runs]
