"""`difflens suggest`: the block and noise step that label-free statistics suggest."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from difflens.backbones.maps import pool_to
from difflens.configs.command_line import beside, shown_command
from difflens.configs.options import resolve
from difflens.configs.suggest import SuggestConfig
from difflens.data.labels import balanced
from difflens.data.load import load_unlabelled
from difflens.data.loader import epoch_order
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError, counted
from difflens.extractors.cache import Reading
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.latents import Latents
from difflens.metrics.label_free import LEAST, high_frequency_share, level_statistics
from difflens.metrics.suggestion import combined_score, suggest_place
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.processes.base import Level, finite, in_words
from difflens.processes.clean import Clean
from difflens.reports.heat_maps import place_map
from difflens.reports.png import write_png
from difflens.reports.suggest import suggest_report
from difflens.results.suggest import SuggestResult
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.text import csv_text
from difflens.studies.places import PLACE_COLUMNS, default_levels, place_rows, probe_like

_SPLITS = 5  # random splits of the images into halves

Statistics = dict[str, Tensor]
"""(T, B) by name, or (B,) of one noise level."""


def suggest(config: SuggestConfig, announce: Callable[[str], object] = lambda line: None) -> SuggestResult:
    """Suggest a place from label-free statistics of every place, and write a table and a report.

    Args:
        announce: receives a line on the number of images.

    Raises:
        DiffLensError: an option is out of range, the data or the backbone cannot be loaded, or there are
            fewer images than the statistics need.
    """
    config = resolve(config)
    split = load_unlabelled(config.data, val_fraction=config.val_fraction)
    needed = f"the statistics need at least {LEAST} images"
    if config.limit < LEAST:
        raise DiffLensError(f"{needed}, and --limit allows {config.limit}")
    if len(split) < LEAST:
        raise DiffLensError(f"{needed}, and {config.data} has {len(split)}")
    config = with_backbone(config, split)
    opened = open_run(config, split, one_process="")
    backbone = opened.backbone
    blocks = backbone.check_blocks(config.blocks or [block.index for block in backbone.blocks])
    steps = backbone.check_noise_steps(config.noise_steps or default_levels(backbone))
    with opened.directory({"blocks": blocks, "noise_steps": steps}) as run:
        opened.move_backbone()
        study = _Study(opened, blocks, backbone.process.by_noise(steps), run)
        announce(
            f"{counted(len(study.split), 'image')}, {study.draws_in_words} each; "
            f"{counted(len(blocks), 'block')} at t = {in_words(study.log_snr)}"
        )
        return study.conclude(*study.measure())


class _Study:
    """The statistics of every place, noise level by noise level."""

    def __init__(
        self,
        opened: OpenedRun[ImageSplit],
        blocks: tuple[int, ...],
        log_snr: dict[Level, float],
        run: RunDirectory,
    ):
        self.opened, self.blocks, self.log_snr, self.run = opened, blocks, log_snr, run
        self.config: SuggestConfig = opened.config
        self.backbone = opened.backbone
        self.split = opened.data.subset(balanced(opened.data, self.config.limit, self.config.seed))
        # a backbone without noise has no second draw
        self.draws = 1 if isinstance(self.backbone.process, Clean) else 2
        self.reading = Reading(self.config.workers, self.config.on_bad_image, [])

    @property
    def draws_in_words(self) -> str:
        return counted(self.draws, "noise draw")

    def measure(self) -> tuple[Statistics, list[Statistics], int]:
        """Return the statistics of all images and of each half, and the number of images that were read."""
        config, spill = self.config, self.run.path / "cache"
        latents = Latents.of(self.backbone, self.split, config.cache_gigabytes, spill)
        levels: list[list[Statistics]] = []
        for t in self.log_snr:
            draws, shares = zip(*(self._read(t, draw, latents) for draw in range(self.draws)), strict=True)
            count = shares[0].shape[1]
            if count < LEAST:
                raise DiffLensError(f"the statistics need at least {LEAST} images, and {count} could be read")
            share = torch.stack(shares).mean(0)
            orders = [epoch_order(count, config.seed, number) for number in range(_SPLITS)]
            subsets = [torch.arange(count), *(half for order in orders for half in order.tensor_split(2))]
            levels.append(
                [
                    level_statistics(
                        [maps[rows] for maps in draws[0]], [maps[rows] for maps in draws[-1]], share[:, rows]
                    )
                    for rows in subsets
                ]
            )
        shutil.rmtree(spill, ignore_errors=True)
        whole, *halves = (
            {name: torch.stack([level[k][name] for level in levels]) for name in levels[0][k]}
            for k in range(len(levels[0]))
        )
        return whole, halves, count

    def _read(self, t: Level, draw: int, latents: Latents | None) -> tuple[list[Tensor], Tensor]:
        """Return pooled features, (N, D) of each block, and their shares of high frequencies, (B, N)."""
        config, places = self.config, [(block, t) for block in self.blocks]
        where = ExtractorConfig("frozen", self.blocks, (t,), config.seed, precision=config.decided_precision)
        extractor = where.build(self.backbone).to(self.opened.process.device)
        rows = torch.arange(len(self.split))
        features, shares = [], []
        for _, maps in self.reading.features(extractor, self.split, rows, None, torch.float32, latents, draw):
            features.append([pool_to(maps[place], config.pool).flatten(1) for place in places])
            shares.append(torch.stack([high_frequency_share(maps[place]) for place in places]))
        if not features:
            raise DiffLensError("no image could be read")
        return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(shares, 1)

    def conclude(self, statistics: Statistics, halves: list[Statistics], images: int) -> SuggestResult:
        """Suggest a place, and write the table, the heat map and the report."""
        config, steps = self.config, tuple(self.log_snr)
        score = combined_score(statistics)
        best = suggest_place(score, [combined_score(half) for half in halves], self.blocks, steps)
        probe = replace(
            probe_like(config), head="attention", blocks=(best.block,), noise_steps=(best.noise_step,)
        )
        commands = (shown_command(probe, beside(config.out, "probe")),)
        result = SuggestResult(
            out=config.out,
            statistics=statistics,
            score=score,
            blocks=self.blocks,
            noise_steps=steps,
            log_snr=tuple(map(finite, self.log_snr.values())),
            images=images,
            passes=images * self.draws * len(steps),
            suggestion=best,
            commands=commands,
            skipped_images=tuple(dict.fromkeys(self.reading.skipped)),
        )
        self.run.write("table.csv", self._table(result))
        roles = [self.backbone.block(block).role for block in self.blocks]
        limits = (float(score.min()), float(score.max()))
        place = (best.block, best.noise_step)
        figure = place_map(score, self.blocks, self.log_snr, roles, place, "score", "{:.2f}", limits)
        self.run.write_with("heatmap.png", partial(write_png, figure))
        report = suggest_report(
            summary=f"Statistics of the features of each block of {config.backbone} at each noise step, on "
            f"images of {config.data}. No label was read.",
            statistics=statistics,
            score=score,
            blocks=self.blocks,
            roles=roles,
            log_snr=self.log_snr,
            best=best,
            commands=commands,
            provenance={
                "Command": shown_command(config),
                "Images": f"{counted(images, 'image')}, each with {self.draws_in_words} at each noise step: "
                f"{counted(result.passes, 'pass')}",
                "Pooling": f"{config.pool} x {config.pool} for all but the share of high frequencies",
                "Seed": config.seed,
                **self.opened.provenance(),
            },
        )
        self.run.write("report.html", report)
        self.run.write_json(FINISHED, result.metrics())
        return result

    def _table(self, result: SuggestResult) -> str:
        """Return the text of table.csv, one line for each place."""
        rows: list[list[object]] = [[*PLACE_COLUMNS, "score", *result.statistics]]
        for at, place in place_rows(self.backbone, self.blocks, self.log_snr):
            values = (result.score[at], *(table[at] for table in result.statistics.values()))
            rows.append([*place, *(f"{float(value):.6g}" for value in values)])
        return csv_text(rows)
