"""`difflens cka`: which blocks, noise steps, poolings and backbones represent images alike."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.backbones.maps import pool_to
from difflens.configs.cka import CkaConfig
from difflens.configs.command_line import shown_command
from difflens.configs.options import resolve
from difflens.data.images import to_float
from difflens.data.load import load_unlabelled
from difflens.data.loader import Batch, epoch_order
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
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
from difflens.opening import open_run
from difflens.reports.cka import similarity_report
from difflens.reports.heat_maps import similarity_map
from difflens.results.cka import CkaResult, Comparison, Mirrors, Representation
from difflens.run.console import progress_bar
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment

_SHOWN = 6  # blocks whose noise steps or poolings are shown


def cka(config: CkaConfig) -> CkaResult:
    """Run `config` and fill its run directory.

    Raises:
        DiffLensError: anything in the configuration, the data or the backbones is not what it should be, or there
            are too few images.
    """
    config = resolve(config)
    if config.limit < LEAST:
        raise DiffLensError(f"CKA needs at least {LEAST} images ({GROUPS} minibatches of {LEAST_IMAGES}), and "
                            f"--limit allows {config.limit}")  # fmt: skip
    split = load_unlabelled(config.data)
    if len(split) < LEAST:
        raise DiffLensError(f"CKA needs at least {LEAST} images ({GROUPS} minibatches of {LEAST_IMAGES}), and "
                            f"{config.data} has {len(split)}")  # fmt: skip
    opened = open_run(config, split, one_process="")
    backbones = [opened.backbone]
    if config.other is not None:
        backbones.append(BackboneConfig(config.other, config.num_head_channels, config.noise_schedule).load())
    fingerprints = [backbone.fingerprint() for backbone in backbones]
    comparison = _Comparison(config, split, backbones, opened.process)
    identity = {
        "blocks": comparison.blocks, "noise_steps": comparison.steps, "backbone_fingerprints": fingerprints,
    }  # fmt: skip
    with opened.directory(identity) as run:
        return _write(comparison, comparison.measure(), fingerprints, run)


class _Comparison:
    """What is compared with what."""

    def __init__(self, config: CkaConfig, split: ImageSplit, backbones: list[Backbone], process: Accelerator):
        self.config, self.split, self.backbones, self.process = config, split, backbones, process
        first = backbones[0]
        self.blocks = first.check_blocks(config.blocks or [block.index for block in first.blocks])
        self.steps = first.check_noise_steps(config.noise_steps or (first.defaults.noise_step,))
        self.sides = tuple(dict.fromkeys(config.pool))
        # of each backbone, one a noise step, so that only one noise step's maps are in memory
        self.extractors = [[self._extractor(first, self.blocks, t) for t in self.steps]]
        if len(backbones) > 1:
            other = backbones[1]
            step = other.defaults.noise_step if config.other_noise_step is None else config.other_noise_step
            (self.other_step,) = other.check_noise_steps((step,))
            self.other_blocks = other.check_blocks([block.index for block in other.blocks])
            self.extractors.append([self._extractor(other, self.other_blocks, self.other_step)])
        self.reading = Reading(config.workers, config.on_bad_image, [])

    def _extractor(self, backbone: Backbone, blocks: Sequence[int], t: int) -> Extractor:
        config = self.config
        places = ExtractorConfig("frozen", tuple(blocks), (t,), config.seed, precision=config.precision)
        return places.build(backbone).to(self.process.device)

    def of(self, t: int, side: int | None = None) -> list[Representation]:
        """The first backbone's blocks at noise step `t`."""
        return [Representation(0, block, t, self.sides[0] if side is None else side) for block in self.blocks]

    def of_other(self) -> list[Representation]:
        return [Representation(1, block, self.other_step, self.sides[0]) for block in self.other_blocks]

    @property
    def representations(self) -> tuple[Representation, ...]:
        mine = [each for t in self.steps for side in self.sides for each in self.of(t, side)]
        return (*mine, *(self.of_other() if len(self.backbones) > 1 else ()))

    def measure(self) -> tuple[Tensor, int, int]:
        """HSIC (GROUPS, P, P) in the order of `representations`, the number of images and of minibatches."""
        limit = min(self.config.limit, len(self.split))
        each = -(-limit // (GROUPS * READ_BATCH))  # minibatches in a group, of equal size
        size = limit // (GROUPS * each)
        # in random order, since a folder's images are sorted by class
        rows = epoch_order(len(self.split), self.config.seed, 0)[: GROUPS * each * size]
        found, images = [], 0
        with progress_bar() as bar:
            task = bar.add_task("comparing", total=len(rows), note="")
            readings = [
                self.reading.batches(extractors[0], self.split, rows, size) for extractors in self.extractors
            ]
            for batches in zip(*readings, strict=True):
                grams = self._grams(batches)
                found.append(hsic(grams))
                images += grams.shape[-1]
                bar.update(task, advance=size)
        if len(found) < GROUPS * each:
            raise DiffLensError(
                "CKA needs readable images in each minibatch, and one has none: give more images"
            )
        return torch.stack(found).unflatten(0, (GROUPS, each)).mean(1), images, len(found)

    @torch.no_grad()
    def _grams(self, batches: Sequence[Batch]) -> Tensor:
        """U-centred Gram matrices (P, n, n) of a minibatch, which each backbone takes in its own size."""
        if len(batches[0]) < LEAST_IMAGES:
            raise DiffLensError(f"CKA needs at least {LEAST_IMAGES} readable images in each minibatch, and one has "
                                f"{len(batches[0])}: give more images")  # fmt: skip
        found: dict[Representation, Tensor] = {}
        for model, (batch, extractors) in enumerate(zip(batches, self.extractors, strict=True)):
            for extractor in extractors:
                with evaluating(extractor):
                    for (block, t), maps in extractor(to_float(batch.images), batch.index).items():
                        for side in self.sides if model == 0 else self.sides[:1]:
                            found[Representation(model, block, t, side)] = gram(pool_to(maps, side or None))
        wrong = [each for each, matrix in found.items() if not matrix.isfinite().all()]
        if wrong:
            raise DiffLensError(f"the features of block {wrong[0].block} at noise step {wrong[0].noise_step} are not "
                                "finite: leave the block out, or check the backbone and its image range")  # fmt: skip
        return torch.stack([found[each] for each in self.representations])


def _write(
    comparison: _Comparison, measured: tuple[Tensor, int, int], fingerprints: list[str], run: RunDirectory
) -> CkaResult:
    config, (groups, images, batches) = comparison.config, measured
    values, half_widths = with_interval(groups, alignment)
    result = CkaResult(
        out=config.out,
        representations=comparison.representations,
        values=values,
        half_widths=half_widths,
        images=images,
        minibatches=batches,
        blocks=comparison.blocks,
        noise_steps=comparison.steps,
        pool=comparison.sides,
        mirrors={t: _mirrors(comparison, groups, t) for t in comparison.steps},
        comparisons=(),
        skipped_images=tuple(comparison.reading.skipped),
    )
    result = replace(result, comparisons=_comparisons(comparison, result))
    run.write("table.csv", _table(comparison, result))
    for part in result.comparisons:
        figure = similarity_map(part.values, part.rows, part.columns, part.axes, part.roles, part.marks)
        run.write_with(f"{part.name}.png", partial(figure.savefig, dpi=160, bbox_inches="tight"))
    names = [config.backbone, *([config.other] if config.other else [])]
    report = similarity_report(
        summary=f"How alike the representations of {' and '.join(names)} are on images of {config.data}, by linear CKA: 1 means "
        "the same up to rotation and scale, 0 unrelated.",
        comparisons=result.comparisons, mirrors=result.mirrors, largest_half_width=result.largest_half_width,
        provenance={
            "Command": shown_command(config),
            **{f"Backbone {k}": f"{name}, fingerprint {fingerprint[:12]}"
               for k, (name, fingerprint) in enumerate(zip(names, fingerprints, strict=True), start=1)},
            "Data": f"{config.data}, fingerprint {comparison.split.fingerprint()[:12]}",
            "Images": f"{images:,} training images in {batches} minibatches, in random order; labels were not read",
            "Estimator": f"linear CKA of the unbiased HSIC, averaged over minibatches; 95 % intervals by the jackknife "
            f"over {GROUPS} groups of images",
            "Seed": config.seed,
            **environment(comparison.process.device),
        },
    )  # fmt: skip
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _comparisons(comparison: _Comparison, result: CkaResult) -> tuple[Comparison, ...]:
    """Every heat map: blocks at each noise step, noise steps and poolings of a few blocks, the other backbone."""
    backbone, blocks, steps, sides = (
        comparison.backbones[0], comparison.blocks, comparison.steps, comparison.sides
    )  # fmt: skip
    roles = [backbone.block(block).role for block in blocks]
    names = [str(block) for block in blocks]
    mirrored = [
        (row, blocks.index(mirror))
        for row, block in enumerate(blocks)
        if (mirror := backbone.block(block).mirror) in blocks
    ]
    found = [
        Comparison("blocks", f"blocks-t{t}", f"t = {t}", result.between(comparison.of(t), comparison.of(t)),
                   names, names, ("block", "block"), (roles, roles), mirrored)
        for t in steps
    ]  # fmt: skip
    chosen = _spread(blocks, backbone.defaults.block)
    if len(steps) > 1:
        labels = [str(t) for t in steps]
        for block in chosen:
            places = [Representation(0, block, t, sides[0]) for t in steps]
            found.append(Comparison(
                "noise steps", f"noise-steps-block{block}", f"Block {block}", result.between(places, places), labels,
                labels, ("noise step t", "noise step t"), ((), ()), []))  # fmt: skip
    if len(sides) > 1:
        labels = [f"{side} x {side}" if side else "whole" for side in sides]
        for block in chosen:
            places = [Representation(0, block, steps[0], side) for side in sides]
            found.append(Comparison(
                "poolings", f"poolings-block{block}", f"Block {block} at t = {steps[0]}", result.between(places, places),
                labels, labels, ("pooled to", "pooled to"), ((), ()), []))  # fmt: skip
    if len(comparison.backbones) > 1:
        other = comparison.of_other()
        titles = (f"block of {comparison.config.backbone}", f"block of {comparison.config.other}")
        other_roles = [comparison.backbones[1].block(each.block).role for each in other]
        found += [
            Comparison("models", f"models-t{t}", f"t = {t}", result.between(comparison.of(t), other), names,
                       [str(each.block) for each in other], titles, (roles, other_roles), [])
            for t in steps
        ]  # fmt: skip
    return tuple(found)


def _spread(blocks: Sequence[int], always: int) -> list[int]:
    """At most six of `blocks`, from the first to the last, with `always` among them if it is one."""
    count = min(_SHOWN, len(blocks))
    chosen = {blocks[round(k * (len(blocks) - 1) / max(1, count - 1))] for k in range(count)}
    if always in blocks and always not in chosen:
        chosen.remove(min(chosen, key=lambda block: abs(block - always)))
        chosen.add(always)
    return sorted(chosen)


def _mirrors(comparison: _Comparison, groups: Tensor, t: int) -> Mirrors | None:
    """Is a decoder block more like its mirror than like other encoder blocks? None without pairs of both kinds."""
    backbone, everything = comparison.backbones[0], comparison.representations
    here = [everything.index(each) for each in comparison.of(t)]
    encoder = [b for b in comparison.blocks if backbone.block(b).role == "encoder"]
    decoder = [b for b in comparison.blocks if backbone.block(b).role == "decoder"]
    decoder = [b for b in decoder if backbone.block(b).mirror in encoder]
    if len(encoder) < 2 or not decoder:
        return None
    distance = torch.tensor([[abs(e - (backbone.block(d).mirror or 0)) for e in encoder] for d in decoder])
    rows, columns = ([here[comparison.blocks.index(b)] for b in blocks] for blocks in (decoder, encoder))
    by_distance, lead, reached = alignment_by_distance(groups, rows, columns, distance)
    return Mirrors(by_distance, lead, len(decoder), int((reached == 0).sum()), int((reached <= 1).sum()))


def _table(comparison: _Comparison, result: CkaResult) -> str:
    """table.csv: a line a pair."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("backbone", "block", "noise_step", "pool")
    writer.writerow([*columns, *(f"other_{name}" for name in columns), "cka", "low_95", "high_95"])
    names = (comparison.config.backbone, comparison.config.other)

    def cells(each: Representation) -> tuple[object, ...]:
        return names[each.model], each.block, each.noise_step, each.side

    for i, first in enumerate(result.representations):
        for k, second in enumerate(result.representations[i + 1 :], start=i + 1):
            value, half = float(result.values[i, k]), float(result.half_widths[i, k])
            ends = (max(-1.0, value - half), min(1.0, value + half))
            writer.writerow([*cells(first), *cells(second), *(f"{each:.4f}" for each in (value, *ends))])
    return text.getvalue()
