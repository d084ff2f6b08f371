"""`difflens sweep`: the accuracy of every block at every noise step, and the recommended place."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from difflens.backbones.base import Backbone
from difflens.configs.command_line import beside, shown_command
from difflens.configs.options import resolve
from difflens.configs.sweep import SweepConfig
from difflens.data.labels import one_label, several_classes
from difflens.data.load import load_data
from difflens.data.split import ImageData
from difflens.errors import counted
from difflens.metrics.recommendation import Recommendation, recommend
from difflens.metrics.statistics import wilson
from difflens.opening import open_run, with_backbone, with_data
from difflens.processes.base import Level, finite
from difflens.reports.heat_maps import accuracy_map
from difflens.reports.png import write_png
from difflens.reports.sweep import sweep_report
from difflens.results.sweep import SweepResult
from difflens.run.directory import FINISHED
from difflens.run.text import csv_text
from difflens.studies.halving import HalvingMeasurement
from difflens.studies.measurement import Measured, Measurement
from difflens.studies.places import PLACE_COLUMNS, default_levels, place_rows, probe_like


def sweep(
    config: SweepConfig,
    announce: Callable[[str], object] = lambda line: None,
    data: ImageData | None = None,
) -> SweepResult:
    """Measure the accuracy of simple classifiers at every place, recommend one, and write a table and a
    report.

    Args:
        announce: receives a line on the number of images, and one on each finished noise step.
        data: as for `probe`.

    Raises:
        DiffLensError: an option is out of range, the data or the backbone cannot be loaded, or the budget is
            too small.
    """
    config = resolve(with_data(config, data))
    began = time.monotonic()
    data = data or load_data(config.data, val_fraction=config.val_fraction)
    data = several_classes(one_label(data, "a sweep"), "a sweep")
    config = with_backbone(config, data.train)
    opened = open_run(config, data, one_process="; `difflens extract` runs in several")
    backbone = opened.backbone
    blocks = backbone.check_blocks(config.blocks or [block.index for block in backbone.blocks])
    steps = backbone.check_noise_steps(config.noise_steps or default_levels(backbone))
    # the places that halving leaves out depend on all noise steps
    growing = None if config.halve else "noise_steps"
    kind = HalvingMeasurement if config.halve else Measurement
    with opened.directory({"blocks": blocks, "noise_steps": steps}, growing=growing) as run:
        opened.move_backbone()
        measurement = kind(opened, blocks, backbone.process.by_noise(steps), run, announce, began)
        return _conclude(measurement, measurement.measure_all())


def _conclude(measurement: Measurement, measured: Measured) -> SweepResult:
    """Recommend a place, and write the table, the heat map and the report."""
    config, run, backbone = measurement.config, measurement.run, measurement.backbone
    blocks, steps, labels = measurement.blocks, measured.noise_steps, measured.labels
    log_snr = {t: measurement.log_snr[t] for t in steps}
    best = recommend(measured.scores, labels, blocks, steps)
    commands = _commands(config, best)
    result = SweepResult(
        out=config.out,
        accuracy=measured.accuracy,
        blocks=blocks,
        noise_steps=steps,
        log_snr=tuple(map(finite, log_snr.values())),
        not_measured=tuple(t for t in measurement.steps if t not in measured.noise_steps),
        images=measured.images,
        validation_images=len(labels),
        recommendation=best,
        commands=commands,
        skipped_images=tuple(measurement.reading.skipped),
        images_by_place=measured.images_by_place,
    )
    run.write("table.csv", _table(backbone, result, log_snr))
    roles = [backbone.block(block).role for block in blocks]
    place = (best.block, best.noise_step)
    figure = accuracy_map(measured.accuracy[config.classifiers[0]], blocks, log_snr, roles, place)
    run.write_with("heatmap.png", partial(write_png, figure))
    report = sweep_report(
        summary=f"The accuracy of a simple classifier on the features of each block of {config.backbone} "
        f"at each noise step, on {measurement.data.name}. The maps are pooled to {config.pool} x "
        f"{config.pool}.",
        accuracy=measured.accuracy,
        blocks=blocks,
        roles=roles,
        log_snr=log_snr,
        not_measured={t: measurement.log_snr[t] for t in result.not_measured},
        best=best,
        images=len(labels),
        images_by_place=measured.images_by_place,
        commands=commands,
        provenance={
            "Command": shown_command(config),
            "Images": f"{counted(measured.images, 'training image')}, the same number of each class where "
            "possible; "
            f"{len(labels):,} of them validate. The test split was not read.",
            "Seed": config.seed,
            **measurement.opened.provenance(),
        },
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _commands(config: SweepConfig, best: Recommendation) -> tuple[str, ...]:
    """Return command lines that probe the recommended place and the recommended fusion."""
    probe = probe_like(config)
    single = replace(probe, head="attention", blocks=(best.block,), noise_steps=(best.noise_step,))
    fused = replace(probe, head="difformer", blocks=best.fusion_blocks, noise_steps=best.fusion_noise_steps)
    return tuple(shown_command(each, beside(config.out, str(each.head))) for each in (single, fused))


def _table(backbone: Backbone, result: SweepResult, log_snr: dict[Level, float]) -> str:
    """Return the text of table.csv, one line for each place and classifier.

    A place that halving has left out has no interval: it was measured on other images than the last places.
    """
    count, images = result.validation_images, result.images_by_place
    bounds = ["low_95", "high_95"]
    rows: list[list[object]] = [
        [*PLACE_COLUMNS, "classifier", "accuracy", *bounds, *([] if images is None else ["images"])]
    ]
    for name, values in result.accuracy.items():
        for at, place in place_rows(backbone, result.blocks, log_snr):
            value = float(values[at])
            interval = [f"{share:.4f}" for share in wilson(round(value * count), count)]
            if images is not None:
                interval = [*(interval if images[at] == images.max() else ["", ""]), str(int(images[at]))]
            rows.append([*place, name, f"{value:.4f}", *interval])
    return csv_text(rows)
