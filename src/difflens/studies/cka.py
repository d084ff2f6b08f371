"""`difflens cka`: the similarity of blocks, noise steps, poolings and backbones by linear CKA."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import pool_to
from difflens.configs.cka import CkaConfig
from difflens.configs.command_line import shown_command
from difflens.configs.options import given, resolve
from difflens.data.changes import say_changes
from difflens.data.images import to_float
from difflens.data.load import load_unlabelled
from difflens.data.loader import Batch, epoch_order
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.extractors.base import Extractor, evaluating
from difflens.extractors.cache import READ_BATCH, Reading
from difflens.extractors.config import ExtractorConfig
from difflens.metrics.cka import (
    GROUPS,
    LEAST,
    LEAST_IMAGES,
    alignment,
    alignment_by_distance,
    gram,
    hsic,
    with_interval,
)
from difflens.metrics.cknna import NEIGHBOURS, local_gram
from difflens.metrics.geometry import effective_rank
from difflens.metrics.moments import Moments
from difflens.models.views import MOST_VIEWED, measure_views
from difflens.opening import open_run, with_backbone
from difflens.processes.base import Level, bracketed, finite, in_words
from difflens.reports.cka import similarity_report
from difflens.reports.heat_maps import similarity_map
from difflens.reports.html import report_of
from difflens.reports.png import write_png
from difflens.results.cka import CkaResult, Comparison, Mirrors, PlaceGeometry, Representation
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment
from difflens.run.text import csv_text
from difflens.studies.places import evenly

_MOST_BLOCKS = 6  # blocks that have heat maps of noise steps or poolings
_NEEDED = f"CKA needs at least {LEAST} images ({GROUPS} minibatches of {LEAST_IMAGES})"


def cka(config: CkaConfig) -> CkaResult:
    """Compare the representations of one backbone or two, and write figures, a table and a report.

    CKA is linear (Kornblith et al., 2019), with the unbiased HSIC over minibatches (Nguyen et al., 2021).
    CKNNA (Huh et al., 2024) compares nearest neighbours within the same minibatches.

    Raises:
        DiffLensError: an option is out of range, the data or a backbone cannot be loaded, there are too few
            images, or the features are not finite.
    """
    config = resolve(config)
    if config.limit < LEAST:
        raise DiffLensError(f"{_NEEDED}, and --limit allows {config.limit}")
    split = load_unlabelled(config.data, val_fraction=config.val_fraction)
    if len(split) < LEAST:
        raise DiffLensError(f"{_NEEDED}, and {config.data} has {len(split)}")
    config = with_backbone(config, split)
    opened = open_run(config, split, one_process="")
    backbones = [opened.backbone]
    if config.other is not None:
        other = config.second(config.other).load()
        say_changes(split, other.spec, other.in_channels, other.image_size)
        backbones.append(other)
    fingerprints = [backbone.fingerprint() for backbone in backbones]
    comparison = _Comparison(config, split, backbones, opened.process)
    places = {"blocks": comparison.blocks, "noise_steps": comparison.steps}
    identity = {**places, "backbone_fingerprints": fingerprints}
    with opened.directory(identity) as run:
        return _write(comparison, comparison.measure(), fingerprints, run)


class _Comparison:
    """The representations to compare, and the measurement of their similarity."""

    def __init__(self, config: CkaConfig, split: ImageSplit, backbones: list[Backbone], process: Accelerator):
        self.config, self.split, self.backbones, self.process = config, split, backbones, process
        first = backbones[0]
        self.blocks = first.check_blocks(config.blocks or [block.index for block in first.blocks])
        steps = first.check_noise_steps(config.noise_steps or (first.defaults.noise_step,))
        self.log_snr = first.process.by_noise(steps)
        self.steps = tuple(self.log_snr)
        self.sides = tuple(dict.fromkeys(config.pool))
        # one extractor a noise step for each backbone, so that the maps of only one noise step are in memory
        self.extractors = [[self._extractor(first, self.blocks, t) for t in self.steps]]
        if len(backbones) > 1:
            other = backbones[1]
            step = other.defaults.noise_step if config.other_noise_step is None else config.other_noise_step
            (self.other_step,) = other.check_noise_steps((step,))
            self.other_blocks = other.check_blocks([block.index for block in other.blocks])
            self.extractors.append([self._extractor(other, self.other_blocks, self.other_step)])
        self.reading = Reading(config.workers, config.on_bad_image, [])
        self.rows = torch.empty(0, dtype=torch.long)  # the images that are read
        # of the maps' means over positions, by model and place
        self.moments: dict[tuple[int, int, Level], Moments] = {}

    def _extractor(self, backbone: Backbone, blocks: Sequence[int], t: Level) -> Extractor:
        config = self.config
        places = ExtractorConfig(
            "frozen", tuple(blocks), (t,), config.seed, precision=config.decided_precision
        )
        return places.build(backbone).to(self.process.device)

    def of(self, t: Level, side: int | None = None) -> list[Representation]:
        """Return the representations of the first backbone's blocks at noise step `t`."""
        return [Representation(0, block, t, self.sides[0] if side is None else side) for block in self.blocks]

    def at(self, t: Level) -> str:
        """Return a noise step of the first backbone and its log-SNR, for a title."""
        return f"t = {in_words({t: self.log_snr[t]})}"

    @property
    def at_other(self) -> str:
        """The second backbone's noise step and its log-SNR, for a title."""
        return f"t = {in_words(self.backbones[1].process.by_noise((self.other_step,)))}"

    def of_other(self) -> list[Representation]:
        """Return the representations of the second backbone's blocks."""
        return [Representation(1, block, self.other_step, self.sides[0]) for block in self.other_blocks]

    @property
    def representations(self) -> tuple[Representation, ...]:
        """Every representation; those of the first backbone come first."""
        first = [place for t in self.steps for side in self.sides for place in self.of(t, side)]
        return (*first, *(self.of_other() if len(self.backbones) > 1 else ()))

    def measure(self) -> "_Measured":
        """Read the images once, and measure every pair of representations."""
        limit = min(self.config.limit, len(self.split))
        batches_a_group = -(-limit // (GROUPS * READ_BATCH))
        size = limit // (GROUPS * batches_a_group)
        # the order is random, because the images of a folder are sorted by class
        rows = epoch_order(len(self.split), self.config.seed, 0)[: GROUPS * batches_a_group * size]
        self.rows = rows
        values, local, images = list[Tensor](), list[Tensor](), 0
        with progress_bar() as bar:
            task = bar.add_task("comparing", total=len(rows), note="")
            readings = [
                self.reading.batches(extractors[0], self.split, rows, size) for extractors in self.extractors
            ]
            for batches in zip(*readings, strict=True):
                grams, near = self._grams(batches)
                values.append(hsic(grams))
                local.append(hsic(near))
                images += grams.shape[-1]
                bar.update(task, advance=size)
        if len(values) < GROUPS * batches_a_group:
            raise DiffLensError(
                "CKA needs readable images in each minibatch, and one has none: give more images"
            )
        groups, near_groups = (
            torch.stack(each).unflatten(0, (GROUPS, batches_a_group)).mean(1) for each in (values, local)
        )
        return _Measured(groups, near_groups, images, len(values), min(NEIGHBOURS, size - 1))

    def geometry(self) -> tuple[PlaceGeometry, ...]:
        """Return the effective rank, the alignment and the uniformity of every place."""
        views = {
            (model, *place): found
            for model, extractors in enumerate(self.extractors)
            for extractor in extractors
            for place, found in measure_views(self.reading, extractor, self.split, self.rows).items()
        }
        return tuple(
            PlaceGeometry(
                *place,
                effective_rank(moments.second),
                len(moments.mean),
                views[place].alignment,
                views[place].uniformity,
            )
            for place, moments in self.moments.items()
        )

    @torch.no_grad()
    def _grams(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return U-centred Gram matrices of one minibatch, (P, n, n), of all pairs and of neighbours alone.

        The minibatch is as each backbone reads it. Its features are added to the moments.
        """
        if len(batches[0]) < LEAST_IMAGES:
            raise DiffLensError(
                f"CKA needs at least {LEAST_IMAGES} readable images in each minibatch, and one has "
                f"{len(batches[0])}: give more images"
            )
        grams: dict[Representation, Tensor] = {}
        near: dict[Representation, Tensor] = {}
        for model, (batch, extractors) in enumerate(zip(batches, self.extractors, strict=True)):
            x_0 = extractors[0].backbone.encode(to_float(batch.images))
            for extractor in extractors:
                with evaluating(extractor):
                    for (block, t), maps in extractor.read(x_0, batch.index).items():
                        for side in self.sides if model == 0 else self.sides[:1]:
                            place, pooled = Representation(model, block, t, side), pool_to(maps, side or None)
                            grams[place] = gram(pooled)
                            near[place] = local_gram(pooled, grams[place])
                        moments = self.moments.setdefault((model, block, t), Moments(maps.shape[1]))
                        moments.add(maps.mean((2, 3)))
        for representation, matrix in grams.items():
            if not matrix.isfinite().all():
                raise DiffLensError(
                    f"the features of block {representation.block} at noise step {representation.noise_step} "
                    "are not finite: leave the block out, or check the backbone and its image range"
                )
        places = self.representations
        return torch.stack([grams[place] for place in places]), torch.stack([near[place] for place in places])


@dataclass(frozen=True)
class _Measured:
    """What one reading of the images gives.

    Attributes:
        groups: HSIC (GROUPS, P, P); rows and columns are in the order of `representations`.
        near_groups: the same of nearest neighbours alone, for CKNNA.
        images, minibatches: how many were read.
        neighbours: number of nearest neighbours of each image.
    """

    groups: Tensor
    near_groups: Tensor
    images: int
    minibatches: int
    neighbours: int


def _write(
    comparison: _Comparison, measured: _Measured, fingerprints: list[str], run: RunDirectory
) -> CkaResult:
    """Write the table, the heat maps and the report of a measurement."""
    config, groups = comparison.config, measured.groups
    images, batches = measured.images, measured.minibatches
    values, half_widths = with_interval(groups, alignment)
    cknna, cknna_half_widths = with_interval(measured.near_groups, alignment)
    result = CkaResult(
        out=config.out,
        representations=comparison.representations,
        values=values,
        half_widths=half_widths,
        cknna=cknna,
        cknna_half_widths=cknna_half_widths,
        neighbours=measured.neighbours,
        geometry=comparison.geometry(),
        images=images,
        minibatches=batches,
        blocks=comparison.blocks,
        noise_steps=comparison.steps,
        log_snr=tuple(map(finite, comparison.log_snr.values())),
        pool=comparison.sides,
        mirrors={t: _mirrors(comparison, groups, t) for t in comparison.steps},
        comparisons=(),
        skipped_images=tuple(comparison.reading.skipped),
    )
    result = replace(result, comparisons=_comparisons(comparison, result))
    run.write("table.csv", _table(comparison, result))
    for part in result.comparisons:
        for measure, values, ending in (("CKA", part.values, ""), ("CKNNA", part.cknna, "-cknna")):
            figure = similarity_map(
                values, part.rows, part.columns, part.axes, part.roles, part.marks, measure
            )
            name = f"{part.name}{ending}.png"
            run.write_with(name, partial(write_png, figure))
    names = [given(config.backbone), *([config.other] if config.other else [])]
    report = similarity_report(
        summary=f"The similarity of representations of {' and '.join(names)} on images of {config.data}, by "
        "linear CKA, and by CKNNA, which compares nearest neighbours alone. 1 means equal up to rotation and "
        f"scale. {_low_values(measured)}",
        comparisons=result.comparisons,
        mirrors=result.mirrors,
        log_snr=comparison.log_snr,
        largest_half_width=result.largest_half_width,
        geometry=result.geometry,
        backbones=names,
        viewed=min(MOST_VIEWED, images),
        provenance={
            "Command": shown_command(config),
            **{
                f"Backbone {k}": f"{name}, fingerprint {fingerprint[:12]}"
                for k, (name, fingerprint) in enumerate(zip(names, fingerprints, strict=True), start=1)
            },
            **{
                title: link
                for k, name in enumerate(names, start=1)
                for title, link in report_of(config.out, f"Report of backbone {k}", name).items()
            },
            "Data": f"{config.data}, fingerprint {comparison.split.fingerprint()[:12]}",
            "Images": f"{counted(images, 'training image')} in {counted(batches, 'minibatch')}, in random "
            "order, without labels",
            "Estimator": "linear CKA of the unbiased HSIC, averaged over minibatches; 95 % intervals by the "
            f"jackknife over {GROUPS} groups of images; CKNNA with "
            f"{counted(result.neighbours, 'neighbour')} in each "
            "minibatch",
            "Seed": config.seed,
            **environment(comparison.process.device),
        },
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _low_values(measured: _Measured) -> str:
    """Return what CKNNA is in small minibatches, or what it is of unrelated features."""
    if measured.neighbours >= measured.images / measured.minibatches - 1:
        return (
            "Unrelated features are near 0. All other images of a minibatch are neighbours here, so CKNNA is "
            "CKA."
        )
    return (
        "Unrelated features have a CKA near 0. Their CKNNA is above 0, the higher, the fewer images a "
        "minibatch has."
    )


def _comparisons(comparison: _Comparison, result: CkaResult) -> tuple[Comparison, ...]:
    """Return the heat maps of blocks, of noise steps and poolings of a few blocks, and of two backbones."""
    backbone, blocks, steps = comparison.backbones[0], comparison.blocks, comparison.steps
    roles = [backbone.block(block).role for block in blocks]
    names = [str(block) for block in blocks]
    mirrored = [
        (row, blocks.index(mirror))
        for row, block in enumerate(blocks)
        if (mirror := backbone.block(block).mirror) in blocks
    ]
    heat_maps = []
    for t in steps:
        both, axes = result.between(comparison.of(t), comparison.of(t)), ("block", "block")
        heat_maps.append(
            Comparison(
                "blocks",
                f"blocks-t{t}",
                comparison.at(t),
                *both,
                names,
                names,
                axes,
                (roles, roles),
                mirrored,
            )
        )
    chosen = _spread(blocks, backbone.defaults.block)
    if len(steps) > 1:
        labels, axes = [bracketed(t, comparison.log_snr[t]) for t in steps], ("noise step t (log-SNR)",) * 2
        for block in chosen:
            by_step = [Representation(0, block, t, comparison.sides[0]) for t in steps]
            both, name = result.between(by_step, by_step), f"noise-steps-block{block}"
            heat_maps.append(Comparison("noise steps", name, f"Block {block}", *both, labels, labels, axes))
    if len(comparison.sides) > 1:
        labels, axes = [f"{k} x {k}" if k else "whole" for k in comparison.sides], ("pooled to", "pooled to")
        for block in chosen:
            by_side = [Representation(0, block, steps[0], side) for side in comparison.sides]
            both, name = result.between(by_side, by_side), f"poolings-block{block}"
            title = f"Block {block} at {comparison.at(steps[0])}"
            heat_maps.append(Comparison("poolings", name, title, *both, labels, labels, axes))
    if len(comparison.backbones) > 1:
        other = comparison.of_other()
        axes = (f"block of {comparison.config.backbone}", f"block of {comparison.config.other}")
        other_names = [str(representation.block) for representation in other]
        other_roles = [comparison.backbones[1].block(representation.block).role for representation in other]
        for t in steps:
            both, parts = result.between(comparison.of(t), other), (roles, other_roles)
            title = f"{comparison.at(t)}, and the other backbone at {comparison.at_other}"
            heat_maps.append(
                Comparison("models", f"models-t{t}", title, *both, names, other_names, axes, parts)
            )
    return tuple(heat_maps)


def _spread(blocks: Sequence[int], always: int) -> list[int]:
    """Return at most six of `blocks`, evenly spaced; `always` is among them if it is one of `blocks`."""
    chosen = {*evenly(blocks, _MOST_BLOCKS)}
    if always in blocks and always not in chosen:
        chosen.remove(min(chosen, key=lambda block: abs(block - always)))
        chosen.add(always)
    return sorted(chosen)


def _mirrors(comparison: _Comparison, groups: Tensor, t: Level) -> Mirrors | None:
    """Return the similarity of decoder blocks to their mirrors; None without such pairs of blocks."""
    backbone, representations = comparison.backbones[0], comparison.representations
    indices = [representations.index(representation) for representation in comparison.of(t)]
    encoder = [b for b in comparison.blocks if backbone.block(b).role == "encoder"]
    decoder = [b for b in comparison.blocks if backbone.block(b).role == "decoder"]
    decoder = [b for b in decoder if backbone.block(b).mirror in encoder]
    if len(encoder) < 2 or not decoder:
        return None
    distance = torch.tensor([[abs(e - (backbone.block(d).mirror or 0)) for e in encoder] for d in decoder])
    rows, columns = ([indices[comparison.blocks.index(b)] for b in blocks] for blocks in (decoder, encoder))
    by_distance, lead, nearest = alignment_by_distance(groups, rows, columns, distance)
    return Mirrors(by_distance, lead, len(decoder), int((nearest == 0).sum()), int((nearest <= 1).sum()))


def _table(comparison: _Comparison, result: CkaResult) -> str:
    """Return the text of table.csv, one line a pair."""
    columns = ("backbone", "block", "noise_step", "log_snr", "pool")
    numbers = ("cka", "low_95", "high_95", "cknna", "cknna_low_95", "cknna_high_95")
    header: list[object] = [*columns, *(f"other_{name}" for name in columns), *numbers]
    rows = [header]
    names = (comparison.config.backbone, comparison.config.other)

    def cells(place: Representation) -> tuple[object, ...]:
        log_snr = comparison.backbones[place.model].process.log_snr(place.noise_step)
        return names[place.model], place.block, place.noise_step, f"{log_snr:.4f}", place.side

    for i, first in enumerate(result.representations):
        for k, second in enumerate(result.representations[i + 1 :], start=i + 1):
            found: list[str] = []
            for values, halves in (
                (result.values, result.half_widths),
                (result.cknna, result.cknna_half_widths),
            ):
                value, half = float(values[i, k]), float(halves[i, k])
                found += [f"{end:.4f}" for end in (value, max(-1.0, value - half), min(1.0, value + half))]
            rows.append([*cells(first), *cells(second), *found])
    return csv_text(rows)
