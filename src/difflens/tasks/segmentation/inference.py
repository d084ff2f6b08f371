"""Segments whole images with sliding windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from difflens.data.dense.base import IGNORED
from difflens.data.dense.samples import Samples, resize, scaled_size, to_square
from difflens.data.images import to_float
from difflens.errors import counted
from difflens.metrics.confusion import confusion_matrix
from difflens.metrics.segmentation import SegmentationEvaluation
from difflens.models.probe import DenseProbe
from difflens.run.memory import require_memory
from difflens.tasks.dense import evaluation_batches

_STEP = 2 / 3
"""The step between windows, as a share of their side: the standard of the field (341 of 512 pixels)."""


_WINDOWS = 16
"""The most windows in a batch."""


@dataclass(frozen=True)
class Sliding:
    """The settings of sliding windows.

    Attributes:
        side: the side of the square windows in pixels.
        scales: the image's shorter side is scaled to `side` times each of these; probabilities are averaged.
        flip: True also averages over the mirrored image at each scale.
    """

    side: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@torch.no_grad()
def class_probabilities(
    probe: DenseProbe, image: Tensor, index: int, sliding: Sliding, draw: int = 0
) -> Tensor:
    """Return the probabilities of the classes at each pixel, (K, H, W), on the probe's device.

    Args:
        image: uint8, (C, H, W), with the channels of the backbone.
        index: the position of the image in its data set, which decides the noise of all windows together with
            `draw`.

    Raises:
        DiffLensError: they do not fit into main memory, and the probe is there.
    """
    height, width = image.shape[-2:]
    if image.device.type == "cpu":
        require_probabilities(cast(int, probe.head.num_classes), height, width, sliding)
    total: Tensor | None = None
    for scale in sliding.scales:
        size = scaled_size((height, width), sliding.side * scale, whole=False)
        scaled = resize(image, size)
        for mirrored in (False, True) if sliding.flip else (False,):
            logits = _window_logits(probe, scaled.flip(-1) if mirrored else scaled, index, sliding.side, draw)
            logits = logits.flip(-1) if mirrored else logits
            # softmax in place: for a large photo and many classes, each copy takes gigabytes
            scores = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]
            scores.sub_(scores.amax(0)).exp_()
            scores.div_(scores.sum(0))
            total = scores if total is None else total.add_(scores)
    assert total is not None
    return total.div_(len(sliding.scales) * (2 if sliding.flip else 1))


def require_probabilities(classes: int, height: int, width: int, sliding: Sliding) -> None:
    """Raise DiffLensError if the probabilities of `class_probabilities` do not fit into main memory."""
    copies = 1 + (sliding.flip or len(sliding.scales) > 1)
    sizes = [scaled_size((height, width), sliding.side * scale, whole=False) for scale in sliding.scales]
    # the picture that the windows cover: their sum and its mean, then the mean beside the probabilities
    covered = max(max(sliding.side, high) * max(sliding.side, wide) for high, wide in sizes)
    pixels = max(2 * covered, covered + copies * height * width)
    what = f"the probabilities of {counted(classes, 'class')} at {width} x {height} pixels"
    require_memory(4 * classes * pixels, what, "give a smaller picture")


def evaluate_segmentation(
    probe: DenseProbe, samples: Samples, classes: tuple[str, ...], sliding: Sliding, process: Accelerator
) -> SegmentationEvaluation:
    """Segment each image of `samples` once, with the noise of draw 0, and count the pixels of each class."""
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for _, predicted, true in predictions(probe, samples, sliding, process):
        counts += confusion_matrix(predicted, true, len(classes), IGNORED)
    total = process.reduce(counts.to(process.device)).cpu() if process.num_processes > 1 else counts
    return SegmentationEvaluation(total, classes)


def predictions(
    probe: DenseProbe,
    samples: Samples,
    sliding: Sliding,
    process: Accelerator,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the position, the predicted and the true classes, uint8 (H, W), of each image.

    Args:
        rows: positions to read; None: this process's share of all images.
    """
    for (row,), (image,), (labels,) in evaluation_batches(probe, samples, 1, process, rows):
        index = int(samples.split.noise_index[row])
        probabilities = class_probabilities(probe, image, index, sliding)
        yield row, probabilities.argmax(0).to(torch.uint8).cpu(), labels["mask"]


def _window_logits(probe: DenseProbe, image: Tensor, index: int, side: int, draw: int) -> Tensor:
    """Return logits, (K, H, W), averaged where windows overlap; an image smaller than a window is padded."""
    height, width = image.shape[-2:]
    filled = to_square(image, side)
    corners = [
        (top, left) for top in _starts(filled.shape[-2], side) for left in _starts(filled.shape[-1], side)
    ]
    total = weight = None
    while corners:
        # batches of powers of two, as a compiled backbone has one graph for each batch size
        count = min(_WINDOWS, 2 ** (len(corners).bit_length() - 1))
        some, corners = corners[:count], corners[count:]
        windows = torch.stack([filled[:, top : top + side, left : left + side] for top, left in some])
        indices = torch.full((len(some),), index, device=image.device)
        logits = probe(to_float(windows), indices, draw, size=(side, side))
        if total is None or weight is None:
            total = logits.new_zeros(logits.shape[1], *filled.shape[-2:])
            weight = logits.new_zeros(filled.shape[-2:])
        for (top, left), part in zip(some, logits, strict=True):
            total[:, top : top + side, left : left + side] += part
            weight[top : top + side, left : left + side] += 1
    assert total is not None
    assert weight is not None
    return (total / weight)[:, :height, :width]


def _starts(length: int, side: int) -> list[int]:
    """Return the positions of windows of `side`, evenly spaced; the last window ends with the image."""
    step = max(1, round(side * _STEP))
    count = 1 + -(-max(0, length - side) // step)
    return [round(k * (length - side) / max(1, count - 1)) for k in range(count)]
