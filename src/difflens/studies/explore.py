"""`difflens explore`: a page on which positions of pictures are compared."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place, pool_to
from difflens.configs.command_line import shown_command
from difflens.configs.explore import ExploreConfig
from difflens.configs.options import given, resolve
from difflens.data.files import list_images
from difflens.data.images import fit, is_padded, to_float
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError, counted
from difflens.extractors.base import evaluating
from difflens.extractors.cache import Reading
from difflens.extractors.config import ExtractorConfig
from difflens.metrics.projection import project
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.processes.base import Level
from difflens.reports.explore import MapOfPlace, explore_page
from difflens.results.explore import ExploreResult
from difflens.results.sweep import SweepResult
from difflens.run.console import note, progress_bar
from difflens.run.directory import CONFIG, FINISHED, RunDirectory, read_record, read_results
from difflens.studies.places import default_levels, evenly

L = TypeVar("L", bound=Level)

PAGE = "explore.html"
"""The file of the page."""

_PLACES = 6  # blocks, and noise steps, by default
_BYTES = 280_000  # of codes at a place: 36 places stay under 15 MB in base64
_SHOWN = 256  # pixels along a side of a picture on the page


def explore(config: ExploreConfig) -> ExploreResult:
    """Write a page on which similarity between positions of pictures can be looked at.

    Raises:
        DiffLensError: an option is out of range, no image can be read, the backbone cannot be loaded, or the
            sweep is of another backbone or no sweep.
    """
    config = resolve(config)
    paths = list_images(config.images)
    if len(paths) > config.count:
        note(
            f"{counted(config.count, 'picture')} of {len(paths):,}, evenly over their order; --count shows "
            "more, up to 48"
        )
    split = FileSplit("pictures", [str(path) for path in evenly(paths, config.count)])
    config = with_backbone(config, split)
    opened = open_run(config, split, one_process="")
    backbone = opened.backbone
    sweep = None if config.sweep is None else _read_sweep(config, opened.fingerprints["backbone_fingerprint"])
    default = (backbone.defaults.block, backbone.defaults.noise_step)
    if sweep is None:
        blocks, steps = [block.index for block in backbone.blocks], default_levels(backbone)
    else:
        blocks, steps = list(sweep.blocks), sorted(sweep.noise_steps)
        default = (sweep.recommendation.block, sweep.recommendation.noise_step)
    chosen = backbone.check_blocks(config.blocks or spread(blocks, default[0]))
    levels = backbone.check_noise_steps(config.noise_steps or spread(steps, default[1]))
    with opened.directory({"blocks": chosen, "noise_steps": levels}) as run:
        opened.move_backbone()
        return _write(opened, chosen, levels, default, sweep, run)


def spread(values: Sequence[L], wanted: Level, count: int = _PLACES) -> list[L]:
    """Return `count` of some sorted values, evenly over them, among them the one nearest to `wanted`."""
    if len(values) <= count:
        return list(values)
    nearest = min(range(len(values)), key=lambda k: abs(values[k] - wanted))
    even = evenly(range(len(values)), count)
    replaced = min(range(count), key=lambda k: abs(even[k] - nearest))
    even[replaced] = nearest
    return [values[k] for k in sorted({*even})]


def _read_sweep(config: ExploreConfig, fingerprint: str) -> SweepResult:
    folder = given(config.sweep)
    if not (folder / CONFIG).is_file():
        raise DiffLensError(f"{folder} is no run directory; --sweep takes that of a sweep")
    record = read_record(folder)
    if record["command"] != "sweep":
        raise DiffLensError(f"{folder} is a run of {record['command']}; --sweep takes one of sweep")
    if record.get("backbone_fingerprint") != fingerprint:
        raise DiffLensError(f"{folder} is a sweep of another backbone than {config.backbone}")
    return read_results(folder, lambda metrics: SweepResult.from_metrics(metrics, folder))


def _write(
    opened: OpenedRun[FileSplit],
    blocks: tuple[int, ...],
    levels: tuple[Level, ...],
    default: Place,
    sweep: SweepResult | None,
    run: RunDirectory,
) -> ExploreResult:
    config: ExploreConfig = opened.config
    backbone, split = opened.backbone, opened.data
    reading = Reading.of(config)
    log_snr = backbone.process.by_noise(levels)
    places: dict[Place, MapOfPlace] = {}
    rows: list[int] = []
    with progress_bar() as bar:
        task = bar.add_task("places", total=len(blocks) * len(levels), note="")
        for t in levels:
            maps, rows = _read(backbone, config, split, reading, blocks, t)
            for block in blocks:
                features = maps[block]
                vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
                places[block, t] = MapOfPlace(
                    features.shape[-1], project(vectors, max(1, _BYTES // len(vectors)))
                )
                bar.update(task, advance=1)
    paths = [split.ids[row].replace("\\", "/").split("/") for row in rows]
    parts = 2 if len({tuple(path[:-1]) for path in paths}) > 1 else 1  # the folder, if there are several
    names = ["/".join(path[-parts:]) for path in paths]
    images = [_shown(split.image(row), backbone.image_size) for row in rows]
    start = (
        min(blocks, key=lambda block: abs(block - default[0])),
        min(levels, key=lambda t: abs(t - default[1])),
    )
    page = explore_page(
        title="Similar positions",
        lead=f"Features of {config.backbone} on {counted(len(rows), 'picture')}.",
        pictures=list(zip(names, images, strict=True)),
        blocks={block: backbone.block(block).role for block in blocks},
        log_snr=log_snr,
        places=places,
        start=start,
        sweep=sweep,
        provenance={"Command": shown_command(config), "Seed": config.seed, **opened.provenance()},
    )
    result = ExploreResult(
        out=config.out,
        images=tuple(split.ids[row] for row in rows),
        blocks=blocks,
        noise_steps=tuple(log_snr),
        bytes=len(page.encode("utf-8", "backslashreplace")),
        agreement=round(min(place.vectors.agreement for place in places.values()), 4),
        skipped_images=tuple(dict.fromkeys(reading.skipped)),
    )
    run.write(PAGE, page)
    run.write_json(FINISHED, result.metrics())
    return result


def _shown(image: Tensor, side: int) -> Tensor:
    """Return a picture as it is shown, uint8 (C, S, S), with the border that a network of this side sees."""
    channels = len(image)
    framed = fit(image, channels, side) if is_padded(image, side) else image
    return fit(framed, channels, _SHOWN)


def _read(
    backbone: Backbone,
    config: ExploreConfig,
    split: FileSplit,
    reading: Reading,
    blocks: tuple[int, ...],
    t: Level,
) -> tuple[dict[int, Tensor], list[int]]:
    """Return maps of at most `cells` positions a side, (N, C, H, W) float32 by block, and the rows of the
    images that could be read."""
    extractor = ExtractorConfig(
        "frozen", blocks, (t,), config.seed, precision=config.decided_precision, draws=config.draws
    ).build(backbone)
    parts: list[dict[int, Tensor]] = []
    rows: list[int] = []
    with evaluating(extractor):
        for batch in reading.batches(extractor, split, torch.arange(len(split)), len(split)):
            maps = extractor(to_float(batch.images), batch.index)
            parts.append({block: pool_to(maps[block, t], config.cells).cpu() for block in blocks})
            rows += batch.rows.tolist()
    if not parts:
        raise DiffLensError("none of the images can be read")
    joined = {block: torch.cat([part[block] for part in parts]) for block in blocks}
    for block, features in joined.items():
        if not features.isfinite().all():
            raise DiffLensError(
                f"the features of block {block} at noise step {t} are not finite: leave it out of --blocks, "
                "or check the backbone and its image range"
            )
    return joined, rows
