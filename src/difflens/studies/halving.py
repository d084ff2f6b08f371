"""A sweep that halves: all places on few images, then the better half on twice as many, and so on."""

from functools import partial
from math import ceil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from difflens.data.labels import balanced
from difflens.data.split import every_nth
from difflens.errors import DiffLensError, counted
from difflens.extractors.cache import FeatureCache
from difflens.metrics.halving import FIRST_SHARE, Rung, successive_halving
from difflens.processes.base import Level, level_name
from difflens.run.console import warn
from difflens.run.reading import read_tensors
from difflens.studies.measurement import Measured, Measurement


class HalvingMeasurement(Measurement):
    """The places of a sweep by successive halving, at the cost of the budget's images at every noise level.

    A rung validates on half of the images that it reads first, and trains on all others. So the last places
    are compared, and the recommended one is measured, on images that left no place out. Features of images
    that were read stay in files until the last rung.
    """

    def measure_all(self) -> Measured:
        """Measure rung by rung, until the budget, the images or the time end."""
        train, blocks, budget = self.data.train, len(self.blocks), self.images()
        shape = (len(self.config.classifiers), len(self.steps), blocks)
        self._accuracy = torch.full(shape, torch.nan, dtype=torch.float64)
        self._images_by_place = torch.zeros(shape[1:], dtype=torch.long)
        self._last: dict[Level, dict[str, Tensor]] = {}
        least = min(len(train), 5 * len(self.data.classes))
        first = max(least, ceil(budget / FIRST_SHARE))
        if 2 * budget < 3 * first < 3 * len(train):  # the next rung reads half as many again, or none
            warn(
                f"a sweep that halves reads 5 images of each class first, {first:,} here, and the budget of "
                f"{counted(budget, 'image')} pays for no second round: nothing may be halved. Give --budget "
                f"{2 * first:,} or more, or leave out --halve"
            )
        self.check_normalisation(first - first // 2)  # half of the first rung's images trains
        self.announce(f"Successive halving from {counted(first, 'training image')} on; {self._grid()}")
        everywhere = torch.ones(shape[1:], dtype=torch.bool)
        rungs = successive_halving(self._measure_rung, everywhere, first, budget * shape[1], len(train))
        self.clean()
        last = rungs[-1]
        labels = next(iter(self._last.values()))["labels"]
        scores = torch.full((*shape[1:], len(labels), len(self.data.classes)), torch.nan, dtype=torch.float16)
        for row, t in enumerate(self.steps):
            if t in self._last:
                scores[row, last.places[row]] = self._last[t]["scores"]
        return Measured(
            noise_steps=self.steps,
            accuracy=dict(zip(self.config.classifiers, self._accuracy, strict=True)),
            scores=scores,
            labels=labels,
            images=last.images,
            images_by_place=self._images_by_place,
        )

    def _measure_rung(self, rung: Rung) -> Tensor | None:
        """Measure the places of a rung; None after the end of the time budget."""
        self._latents, self._last = None, {}
        for row, t in enumerate(self.steps):
            places = rung.places[row]
            blocks = tuple(block for block, kept in zip(self.blocks, places.tolist(), strict=True) if kept)
            if not blocks:
                continue
            name = f"rungs/{rung.number}-t{level_name(t)}.safetensors"
            step = self._stored(name, blocks)
            if step is None:
                step = self._measure_level(rung, t, blocks)
                self.run.write_with(name, partial(save_file, step))
                self.run.keep()
            self._last[t] = step
            self._accuracy[:, row, places] = step["accuracy"]
            self._images_by_place[row, places] = rung.images
        best = self._accuracy[0].masked_fill(~rung.places, -1)
        row, column = divmod(int(best.argmax()), len(self.blocks))
        self.announce(
            f"{counted(int(rung.places.sum()), 'place')} on {counted(rung.images, 'image')}: best block "
            f"{self.blocks[column]} "
            f"at t = {self.steps[row]}, {100 * float(best.max()):.2f} %"
        )
        return None if self.too_late() else self._accuracy[0]

    def _measure_level(self, rung: Rung, t: Level, blocks: tuple[int, ...]) -> dict[str, Tensor]:
        """Measure the places of a rung at one noise level; returns what `judge` returns."""
        cache = self._features(rung, t, blocks)
        new = torch.ones(len(cache), dtype=torch.bool)
        if rung.before:
            new = ~torch.isin(cache.rows, balanced(self.data.train, rung.before, self.config.seed))
        held_out = new.clone()
        held_out[new] = every_nth(cache.labels[new], 2)
        if not held_out.any():
            raise DiffLensError(
                "a sweep that halves holds out half of each class, and no class has two new images"
            )
        return self.judge(cache, t, held_out)

    def _features(self, rung: Rung, t: Level, blocks: tuple[int, ...]) -> FeatureCache:
        """Return the features of the rung's images, of which those of earlier rungs are not read again.

        The rows of the result are positions in the training split, ascending.
        """
        train = self.data.train
        rows = balanced(train, rung.images, self.config.seed)
        file = self._kept_file(t)
        # "asked" are the rows whose reading was tried, of which "rows" could be read
        kept = read_tensors(file) if file.exists() else {"asked": rows[:0]}
        missing = rows[~torch.isin(rows, kept.pop("asked"))]
        parts = [{name: kept[name] for name in ("rows", *map(str, blocks))}] if kept else []
        if len(missing):
            if self._latents is not None and len(self._latents.rows) != len(missing):
                self._latents = None  # they belong to other images
            read = self.read(train.subset(missing), t, blocks)
            every = torch.arange(len(read))
            maps = {str(block): read.maps[block, t][every] for block in blocks}
            parts.append({"rows": missing[read.rows], **maps})
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = together["rows"].argsort()
        together = {name: values[order].contiguous() for name, values in together.items()}
        save = partial(save_file, {"asked": rows, **together})
        self.run.write_with(str(file.relative_to(self.run.path)), save)
        assert train.labels is not None
        features = {(block, t): together[str(block)] for block in blocks}
        return FeatureCache(features, train.labels[together["rows"]], together["rows"])

    def _kept_file(self, t: Level) -> Path:
        return self.run.path / "cache" / f"kept-t{level_name(t)}.safetensors"
