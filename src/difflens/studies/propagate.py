"""`difflens propagate`: the mask of a sequence's first frame, carried through all frames."""

from collections import deque
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from difflens.configs.command_line import shown_command
from difflens.configs.options import given, resolve
from difflens.configs.propagate import PropagateConfig
from difflens.data.changes import say_changes
from difflens.data.dense.base import IGNORED
from difflens.data.dense.masks import BACKGROUND, read_mask, to_palette_image
from difflens.data.images import read_image
from difflens.data.sequences import Sequence, SequenceSet, load_sequences
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted, listing, plural
from difflens.metrics.propagation import boundary_f, carry, jaccard
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.reports.overlays import examples, mask_overlay
from difflens.reports.propagate import propagate_report
from difflens.results.propagate import ObjectScore, PropagatedSequence, PropagateResult
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.studies.whole_pictures import WholePictures

_SHOWN = 4  # sequences in the report, and frames of each
_ROUNDING = 1e-5  # shares that differ by less are the same


def propagate(config: PropagateConfig) -> PropagateResult:
    """Carry masks through sequences, and write a mask of every frame and a report.

    As in DINO's protocol for DAVIS, which DIFT takes over, the shares of each label are stretched to [0, 1]
    over a frame before they are compared. They are carried on as they are.

    Raises:
        DiffLensError: an option is out of range, the sequences have another layout, a frame or a mask cannot
            be read, or the backbone has no such place or does not take pictures of this size.
    """
    config = resolve(config)
    data = load_sequences(config.frames, config.masks, config.sequences)
    first = FileSplit("frames", [str(each.frames[0]) for each in data.sequences])
    config = with_backbone(config, first)
    opened = open_run(config, data, one_process="")
    backbone = opened.move_backbone()
    reader = WholePictures(backbone, config, config.decided_precision, config.seed)
    say_changes(first, given(config.backbone), backbone.in_channels, reader.side)
    with opened.directory() as run:
        return _write(opened, reader, run)


def _write(opened: OpenedRun[SequenceSet], reader: WholePictures, run: RunDirectory) -> PropagateResult:
    config: PropagateConfig = opened.config
    found: dict[str, PropagatedSequence] = {}
    figures: list[tuple[str, Figure]] = []
    sequences = opened.data.sequences
    with progress_bar() as bar:
        task = bar.add_task("frames", total=sum(len(each.frames) for each in sequences), note="")
        for sequence in sequences:  # before any is read at length
            _values(sequence, read_mask(sequence.masks[0]))
        for sequence in sequences:
            carried = _Carried(config, reader, sequence)
            for number, path in enumerate(sequence.frames):
                mask = carried.next(number)
                picture = to_palette_image(mask)
                run.write_with(f"masks/{sequence.name}/{path.stem}.png", partial(picture.save, format="PNG"))
                bar.update(task, advance=1)
            found[sequence.name] = carried.result()
            if len(figures) < _SHOWN:
                figures.append((sequence.name, carried.figure()))
    result = PropagateResult(
        out=config.out, block=reader.block, noise_step=reader.noise_step, sequences=found
    )
    near = f"at most {counted(config.radius, 'cell')} away" if config.radius else "anywhere"
    protocol = (
        f"A position takes its label from its {config.neighbours} most similar "
        f"{plural('position', given(config.neighbours))} {near} in the first "
        f"frame and in the {config.context} before the present one, weighted by the softmax of cosine / "
        f"{config.temperature:g}. Before the largest share gives the label of a pixel, the shares of each "
        "label are stretched to [0, 1] over the frame."
    )
    report = propagate_report(
        result=result,
        data=opened.data.name,
        place=reader.describe(),
        protocol=protocol,
        figures=figures,
        provenance={
            "Command": shown_command(config),
            "Features": f"{reader.describe()}, mean of {counted(given(config.draws), 'noise draw')}",
            "Frames as read": f"resized to squares of {reader.side} pixels, as a whole",
            "Seed": config.seed,
            **opened.provenance(),
        },
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _values(sequence: Sequence, mask: np.ndarray) -> list[int]:
    """Return the labels of the first mask, sorted; raise DiffLensError if it shows no object."""
    there = np.unique(mask).tolist()
    values = [value for value in there if value != IGNORED]
    if not any(values):
        raise DiffLensError(
            f"the first mask of {sequence.name} shows no object: {plural('its value', len(there))} "
            f"{'are' if len(there) > 1 else 'is'} {listing(there)}. Number objects from 1; 0 is the "
            f"background and {IGNORED} is no label"
        )
    return values


class _Carried:
    """The masks of one sequence, frame by frame.

    Attributes:
        values: the values of the first mask without `IGNORED`, sorted; K of them.
    """

    def __init__(self, config: PropagateConfig, reader: WholePictures, sequence: Sequence):
        self.config, self.reader, self.sequence = config, reader, sequence
        given_mask = read_mask(sequence.masks[0])
        self.first_mask = given_mask
        self.values = _values(sequence, given_mask)
        self.first: tuple[Tensor, Tensor] | None = None
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=given(config.context))
        self.scores: dict[int, list[tuple[float, float]]] = {}
        self.measured = 0
        count = len(sequence.frames)
        self.shown = {round(k * (count - 1) / (_SHOWN - 1)) for k in range(_SHOWN)}
        self.pictures: dict[int, tuple[Tensor, np.ndarray]] = {}

    def next(self, number: int) -> np.ndarray:
        """Return the mask of frame `number`, uint8 (H, W), which continues those before."""
        image = read_image(self.sequence.frames[number])
        features = self.reader.map(image, number)
        if self.first is None:
            labels = one_hot(self.first_mask, self.values, features)
            self.first, mask = (features, labels), self.first_mask
        else:
            config = self.config
            context = [self.first, *self.recent]
            labels = carry(
                features,
                [each for each, _ in context],
                [each for _, each in context],
                neighbours=given(config.neighbours),
                radius=given(config.radius),
                temperature=given(config.temperature),
            )
            self.recent.append((features, labels))
            mask = to_mask(labels, self.values, image.shape[-2:])
            self._measure(number, mask)
        if number in self.shown:
            self.pictures[number] = image, mask
        return mask

    def _measure(self, number: int, mask: np.ndarray) -> None:
        last = number == len(self.sequence.frames) - 1
        if number not in self.sequence.masks or (last and not self.config.score_last):
            return
        true = torch.from_numpy(read_mask(self.sequence.masks[number]))
        known = true != IGNORED
        self.measured += 1
        for value in self.values:
            if value:  # the background is no object
                one, other = (torch.from_numpy(mask) == value) & known, true == value
                self.scores.setdefault(value, []).append((jaccard(one, other), boundary_f(one, other)))

    def result(self) -> PropagatedSequence:
        """Return the scores of the objects."""
        objects = {
            str(value): ObjectScore(*(round(float(mean), 6) for mean in np.mean(scores, axis=0)))
            for value, scores in self.scores.items()
        }
        return PropagatedSequence(len(self.sequence.frames), self.measured, objects)

    def figure(self) -> Figure:
        """Return some frames with their masks."""
        classes = (BACKGROUND,)
        numbers = sorted(self.pictures)
        overlays = [
            mask_overlay(image, torch.from_numpy(mask), classes)
            for image, mask in (self.pictures[k] for k in numbers)
        ]
        return examples([f"frame {k + 1}" for k in numbers], [overlays], [])


def one_hot(mask: np.ndarray, values: list[int], features: Tensor) -> Tensor:
    """Return the share of each value in the cells of a feature map, (K, h, w), from a mask, (H, W)."""
    pixels = torch.from_numpy(mask).to(features.device)
    planes = torch.stack([pixels == value for value in values]).float()
    return F.interpolate(planes[None], tuple(features.shape[-2:]), mode="area")[0]


def to_mask(labels: Tensor, values: list[int], size: tuple[int, ...]) -> np.ndarray:
    """Return the value of the largest share at each pixel, uint8 (H, W), from shares, (K, h, w), in [0, 1].

    The shares of each label are stretched to [0, 1] over the frame before, unless they are all the same.
    """
    grown = F.interpolate(labels[None], tuple(size), mode="bilinear", align_corners=False)[0]
    low, high = grown.amin((1, 2), keepdim=True), grown.amax((1, 2), keepdim=True)
    # sums of weights differ from 1 by rounding
    stretched = torch.where(high - low > _ROUNDING, (grown - low) / (high - low), grown)
    found = stretched.argmax(0).cpu().numpy()
    return np.asarray(values, np.uint8)[found]
