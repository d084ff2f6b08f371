"""The accuracy of every place on held-out training images, noise level by noise level."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import save_file
from torch import Tensor

from difflens.configs.sweep import SweepConfig
from difflens.data.labels import balanced
from difflens.data.split import ImageData, ImageSplit, every_nth
from difflens.errors import DiffLensError, counted, listing
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.latents import Latents
from difflens.heads.normalise import Normalisation
from difflens.models.simple import measure_places
from difflens.opening import OpenedRun
from difflens.processes.base import Level, in_words, level_name
from difflens.ranges import Count
from difflens.run.directory import RunDirectory
from difflens.run.reading import read_tensors

# share of a time budget for reading features; the rest is for the classifiers and for delays
_READING = 0.7


@dataclass(frozen=True)
class Measured:
    """What a sweep measured.

    Attributes:
        noise_steps: the T noise levels that were read, from the least to the most noise.
        accuracy: (T, B) float64 shares in [0, 1], by classifier.
        scores: (T, B, V, K) scores of the first classifier on the validation images, comparable between
            places; NaN at places that were not measured on these images.
        labels: (V,) long, of the validation images.
        images: the number of training images that were read, validation images included.
        images_by_place: (T, B) long, the numbers of images behind `accuracy`; None: `images` everywhere.
    """

    noise_steps: tuple[Level, ...]
    accuracy: dict[str, Tensor]
    scores: Tensor
    labels: Tensor
    images: int
    images_by_place: Tensor | None = None


@dataclass(frozen=True)
class _Images:
    """images.json: the number of training images that a sweep reads, and a line for each unreadable one."""

    images: Count
    skipped: tuple[str, ...] = ()


class Measurement:
    """The noise levels of a sweep, measured one after the other, from the least to the most noise.

    Args:
        opened: resources of the command.
        blocks: the B blocks.
        log_snr: by noise level, from the least to the most noise.
        run: keeps what was measured.
        announce: receives a line on the number of images, and one on each finished noise level.
        began: `time.monotonic` when the command began.
    """

    def __init__(
        self,
        opened: OpenedRun[ImageData],
        blocks: tuple[int, ...],
        log_snr: dict[Level, float],
        run: RunDirectory,
        announce: Callable[[str], object],
        began: float,
    ):
        self.opened, self.blocks, self.log_snr, self.run = opened, blocks, log_snr, run
        self.steps = tuple(log_snr)
        self.config: SweepConfig = opened.config
        self.data, self.backbone, self.process = opened.data, opened.backbone, opened.process
        self.announce, self.began = announce, began
        self._announced_single = False
        self._latents: Latents | None = None
        self.reading = Reading(self.config.workers, self.config.on_bad_image, [])
        self.seconds = self.config.limits()[1]

    def measure_all(self) -> Measured:
        """Measure every noise level that the time budget allows."""
        split = self.data.train.subset(balanced(self.data.train, self.images(), self.config.seed))
        assert split.labels is not None
        held_out = int(every_nth(split.labels, 5).sum())
        self.check_normalisation(len(split) - held_out)
        self.announce(
            f"{counted(len(split), 'training image')}, {held_out:,} of them for validation; {self._grid()}"
        )
        measured: dict[Level, dict[str, Tensor]] = {}
        for t in self.steps:
            step = self._stored(_file(t), self.blocks)
            if step is None:
                if measured and self.too_late():
                    break
                self.run.grow()
                step = self._measure(split, t)
                self.run.write_with(_file(t), partial(save_file, step))
                self.run.keep()
                self._announce_best(t, step, self.blocks)
            measured[t] = step
        self.clean()
        steps = tuple(measured)
        return Measured(
            noise_steps=steps,
            accuracy={
                name: torch.stack([measured[t]["accuracy"][k] for t in steps])
                for k, name in enumerate(self.config.classifiers)
            },
            scores=torch.stack([measured[t]["scores"] for t in steps]),
            labels=measured[steps[0]]["labels"],
            images=len(split),
        )

    def images(self) -> int:
        """Return how many training images the budget allows; a resumed run reads as many as before."""
        if not (self.run.path / "images.json").exists():
            count = self._affordable()
            self.run.write_json("images.json", {"images": count, "skipped": self.reading.skipped})
            return count
        written = self.run.read_json("images.json", _Images)
        self.reading.skipped.extend(written.skipped)
        count = written.images
        if count > len(self.data.train):
            raise DiffLensError(
                f"{self.run.path / 'images.json'}: images is {count}, and the data has "
                f"{counted(len(self.data.train), 'training image')}"
            )
        limit = self.config.limits()[0]
        if limit is not None and count != min(limit, len(self.data.train)):
            self.announce(f"The sweep goes on with the {counted(count, 'image')} that it began with")
        return count

    def check_normalisation(self, training: int) -> None:
        """Raise DiffLensError if so few training images cannot normalise the maps as asked."""
        if self.config.normalise != "none":
            channels = {(block, self.steps[0]): self.backbone.block(block).channels for block in self.blocks}
            Normalisation(channels, self.config.normalise).check(training)

    def too_late(self) -> bool:
        """Return True if the time budget is spent."""
        return self.seconds is not None and time.monotonic() - self.began > self.seconds

    def clean(self) -> None:
        """Remove the features and latents that are needed only while images are read."""
        shutil.rmtree(self.run.path / "cache", ignore_errors=True)

    def read(self, split: ImageSplit, t: Level, blocks: tuple[int, ...]) -> FeatureCache:
        """Return the pooled maps of `blocks` at one noise level, with one pass through the backbone."""
        spill, memory = self.run.path / "cache", self.config.cache_gigabytes
        latents = self._latents = self._latents or Latents.of(self.backbone, split, memory, spill)
        memory = max(0.0, memory - latents.gigabytes) if latents else memory
        known = len(self.reading.skipped)
        features = read_features(
            self._extractor(t, blocks),
            self.config.pool,
            split,
            self.process,
            self.reading,
            memory,
            spill,
            latents,
        )
        if len(self.reading.skipped) > known:
            count = self.run.read_json("images.json", _Images).images
            self.run.write_json("images.json", {"images": count, "skipped": self.reading.skipped})
        return features

    def judge(self, cache: FeatureCache, t: Level, held_out: Tensor) -> dict[str, Tensor]:
        """Train classifiers at each block of one noise level, and evaluate them on the held-out images.

        Args:
            held_out: (N,) bool, True for the V validation images.

        Returns:
            "accuracy" (classifiers, B) float64 in [0, 1]; "scores" (B, V, K) float16 of the first classifier
            on the validation images; "labels" (V,) long.
        """
        places = sorted(place for place in cache.maps if place[1] == t)
        config, classes = self.config, len(self.data.classes)
        device = self.process.device
        return measure_places(cache, places, held_out, config.classifiers, classes, device, config.normalise)

    def _grid(self) -> str:
        return f"{counted(len(self.blocks), 'block')} at t = {in_words(self.log_snr)}"

    def _announce_best(self, t: Level, step: dict[str, Tensor], blocks: tuple[int, ...]) -> None:
        accuracy = step["accuracy"][0]
        best = int(accuracy.argmax())
        self.announce(
            f"t = {in_words({t: self.log_snr[t]})}: best block {blocks[best]}, "
            f"{100 * float(accuracy[best]):.2f} %"
        )

    def _affordable(self) -> int:
        """Return how many images the budget allows, from the measured speed of reading."""
        images, seconds = self.config.limits()
        train = self.data.train
        count = min(len(train), images or len(train))
        least = min(len(train), 5 * len(self.data.classes))
        if seconds is not None:
            pilot = train.subset(balanced(train, 128, self.config.seed))
            extractor = self._extractor(self.steps[0], self.blocks)
            for _ in range(2):  # the first reading also warms up
                started = time.monotonic()
                read_features(extractor, self.config.pool, pilot, self.process, self.reading)
                seconds_an_image = (time.monotonic() - started) / len(pilot)
            count = min(count, int(_READING * seconds / (len(self.steps) * seconds_an_image)))
        if count < least:
            raise DiffLensError(
                f"the budget {' '.join(self.config.budget)} allows {counted(count, 'image')}, and "
                f"{counted(len(self.data.classes), 'class')} at {counted(len(self.steps), 'noise step')} "
                "need at least "
                f"{least}: allow more, or name fewer noise steps"
            )
        return count

    def _stored(self, name: str, blocks: tuple[int, ...]) -> dict[str, Tensor] | None:
        """Return what an earlier run measured at `blocks` and kept in a file; None if there is none."""
        path = self.run.path / name
        if not path.exists():
            return None
        step = read_tensors(path)
        if not self._fits(step, len(blocks)):
            raise DiffLensError(f"{path} is damaged: delete it and run again with --resume")
        return step

    def _fits(self, step: dict[str, Tensor], blocks: int) -> bool:
        """Return True for tensors that `judge` may have returned."""
        found = {name: tuple(tensor.shape) for name, tensor in step.items()}
        classes = len(self.data.classes)
        images = max(found.get("labels", ()), default=0)
        if found != {
            "accuracy": (len(self.config.classifiers), blocks),
            "scores": (blocks, images, classes),
            "labels": (images,),
        }:
            return False
        accuracy, labels = step["accuracy"], step["labels"]
        return (
            accuracy.is_floating_point()
            and bool(((accuracy >= 0) & (accuracy <= 1)).all())
            and not labels.is_floating_point()
            and bool(((labels >= 0) & (labels < classes)).all())
            and not bool(step["scores"].isnan().any())
        )

    def _measure(self, split: ImageSplit, t: Level) -> dict[str, Tensor]:
        """Measure all blocks at one noise level; returns what `judge` returns."""
        cache = self.read(split, t, self.blocks)
        held_out = every_nth(cache.labels, 5)
        if not held_out.any():
            raise DiffLensError(
                "a sweep holds out a fifth of each class, and no class has two training images"
            )
        single = (cache.labels.bincount() == 1).nonzero()[:, 0].tolist()
        if single and not self._announced_single:
            self._announced_single = True
            names = listing([self.data.classes[label] for label in single])
            self.announce(f"Classes with a single image are trained on but not validated: {names}")
        step = self.judge(cache, t, held_out)
        for file in (self.run.path / "cache").glob("*.bin"):
            file.unlink()
        return step

    def _extractor(self, t: Level, blocks: tuple[int, ...]) -> Extractor:
        config = self.config
        places = ExtractorConfig("frozen", blocks, (t,), config.seed, precision=config.decided_precision)
        return places.build(self.backbone)


def _file(t: Level) -> str:
    """Return the name of the file that holds what was measured at a noise level."""
    return f"steps/t{level_name(t)}.safetensors"
