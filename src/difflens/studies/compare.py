"""`difflens compare`: several backbones on the same images by the same protocols."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.config import read_once
from difflens.backbones.maps import Place
from difflens.choices import SamplerName
from difflens.configs.command_line import shown_command
from difflens.configs.compare import CompareConfig, Trial
from difflens.configs.options import resolve
from difflens.configs.probe import ProbeConfig
from difflens.data.labels import balanced, label_fraction, limited, one_label, several_classes
from difflens.data.load import load_data
from difflens.data.split import ImageData, Metric, every_nth
from difflens.errors import DiffLensError, counted
from difflens.extractors.base import Extractor
from difflens.extractors.cache import READ_BATCH, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.shared import SharedFeatures
from difflens.generation.fidelity import check_inception, fidelity
from difflens.generation.generate import generate
from difflens.metrics.cka import LEAST_IMAGES
from difflens.metrics.cknna import cknna
from difflens.metrics.classification import paired_difference
from difflens.metrics.geometry import effective_rank
from difflens.models.feature_space import FeatureSpace
from difflens.models.views import Views, mean_features, measure_views
from difflens.opening import OpenedRun, open_run
from difflens.processes.base import NoiseProcess, finite, in_words
from difflens.processes.variance_preserving import VariancePreserving
from difflens.reports.charts import protocol_dots
from difflens.reports.compare import compare_report
from difflens.reports.html import reports_of
from difflens.reports.png import write_png
from difflens.results.compare import GEOMETRY, BackboneScores, CompareResult, Score
from difflens.results.fidelity import FidelityResult, caution
from difflens.results.probe import ProbeResult, deviation_of, mean_of
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.text import csv_text
from difflens.studies.extract import extract
from difflens.studies.sweep import sweep
from difflens.tasks.classification.probe import places_and_head, pools_alike, probe

_TIMINGS = 3  # readings; the fastest one counts
_RANKED = 2000  # training images that measure the effective rank, or all


@dataclass
class _Candidate:
    """A backbone, and the results that it has so far.

    Attributes:
        sampler: the sampler of its samples; None for a backbone without samples to measure.
        process: its noise process.
        place: block and noise step that are read.
        geometry: measures of the place's features, by name; empty before they are measured.
        distance: the distance of its samples from test images; None before it is measured.
        results: by key of the trial.
    """

    spec: str
    fingerprint: str
    parameters: int
    sampler: SamplerName | None
    process: NoiseProcess
    place: Place
    geometry: Mapping[str, float | None] = field(default_factory=dict)
    distance: FidelityResult | None = None
    results: dict[str, ProbeResult] = field(default_factory=dict)


def compare(config: CompareConfig, announce: Callable[[str], object] = lambda line: None) -> CompareResult:
    """Probe every backbone by every protocol, measure its samples, and write a table, a plot and a report.

    Args:
        announce: receives a line on each finished step.

    Raises:
        DiffLensError: an option is out of range, the data has too few labels, or data or a backbone cannot be
            loaded. Most errors are raised before anything is written.
    """
    with read_once():
        return _compare(resolve(config), announce)


def _compare(config: CompareConfig, announce: Callable[[str], object]) -> CompareResult:
    data = load_data(config.data, val_fraction=config.val_fraction)
    data = several_classes(one_label(data, "compare"), "a probe")
    for trial in config.trials:
        _check_labels(config, data, trial)  # before hours of other trials
    opened = open_run(config, data, one_process="; each of its probes can be run in several")
    process = opened.process
    candidates = [_candidate(config, spec) for spec in config.backbones]
    if config.samples and any(candidate.sampler for candidate in candidates):
        # a feature space that cannot be loaded is an error before hours of probes, too
        if config.space == "inception":
            measured = resolve(config.fidelity(config.backbones[0]))
            check_inception(measured, config.samples, min(config.samples, len(data.test)))
        else:
            FeatureSpace.load(config.backbone(config.space), None, None, config.seed, process.device)
    with opened.directory(growing="backbones") as run:
        run.grow()
        for candidate in candidates:
            chosen = None
            if config.sweep is not None:
                best = sweep(config.places(candidate.spec)).recommendation
                run.keep()
                chosen = candidate.place = (best.block, best.noise_step)
                level = in_words(candidate.process.by_noise((best.noise_step,)))
                announce(f"{candidate.spec} is read at block {best.block}, t = {level}")
            probes = {trial: config.probe(candidate.spec, trial, chosen) for trial in config.trials}
            sides = [_side(config, candidate, each) for each in probes.values()]
            if config.store:
                extract(config.extract(candidate.spec, candidate.place, _pool(config, candidate, sides)))
                run.keep()
            with closing(SharedFeatures(sides, config.folder(candidate.spec) / "cache")) as features:
                # all labels first: few labels need a part of these images
                for trial in sorted(probes, key=lambda trial: -(trial.label_fraction or 1)):
                    result = probe(probes[trial], data, features)
                    run.keep()
                    candidate.results[trial.key] = result
                    score = _score(result, data.metric)
                    announce(f"{candidate.spec}, {trial.title}: {100 * score.value:.2f} %")
            candidate.results = {trial.key: candidate.results[trial.key] for trial in config.trials}
            if candidate.sampler is not None and config.samples:
                generate(config.generate(candidate.spec, candidate.sampler))
                run.keep()
                candidate.distance = fidelity(config.fidelity(candidate.spec))
                space, distance = candidate.distance.space, candidate.distance.sample_distance
                announce(f"{candidate.spec}, Fréchet distance in {space}: {distance.frechet:.4g}")
        read = [_features(config, data, candidate, process) for candidate in candidates]
        for candidate, each in zip(candidates, read, strict=True):
            candidate.geometry = _geometry(each, read[0])
        speeds = _images_per_second(config, data, candidates, process)
        return _write(opened, candidates, speeds, run)


def _check_labels(config: CompareConfig, data: ImageData, trial: Trial) -> None:
    """Check that a trial has enough labels.

    Raises:
        DiffLensError: no class has two training images left.
    """
    train = limited(data.train, config.limit, config.seed)
    if trial.label_fraction is not None:
        train = label_fraction(train, trial.label_fraction, config.seed, data.classes)
    if trial.head == "linear" and (train.labels is None or not every_nth(train.labels, 5).any()):
        raise DiffLensError(
            f"the protocol {trial.title} holds out a fifth of each class to choose its learning rate, and no "
            "class has two training images left: give more images or labels"
        )


def _candidate(config: CompareConfig, spec: str) -> _Candidate:
    backbone = config.backbone(spec).load()
    read = backbone.network if isinstance(backbone, BiGANBackbone) else backbone  # without its generator
    count = sum(parameter.numel() for parameter in read.parameters())
    place = (backbone.defaults.block, backbone.defaults.noise_step)
    return _Candidate(spec, backbone.fingerprint(), count, _sampler(backbone), backbone.process, place)


def _side(config: CompareConfig, candidate: _Candidate, run: ProbeConfig) -> int | None:
    """Return the side that a probe's head pools larger maps to; None: it reads whole maps."""
    defaults = config.backbone(candidate.spec).load().defaults
    _, head = places_and_head(resolve(run), defaults, None)
    return head.side


def _pool(config: CompareConfig, candidate: _Candidate, sides: Iterable[int | None]) -> int:
    """Return the side that a store pools larger maps to; 0, whole maps, if it would change what a head reads.

    Args:
        sides: those that the heads pool to; None: whole maps.
    """
    backbone, pool = config.backbone(candidate.spec).load(), config.token_side or 0
    width = backbone.image_size // backbone.block(candidate.place[0]).stride
    return pool if pool and all(pools_alike(width, pool, side) for side in sides) else 0


def _extractor(config: CompareConfig, candidate: _Candidate, device: torch.device) -> Extractor:
    """Return the frozen extractor of a backbone's place."""
    backbone = config.backbone(candidate.spec).load(device)
    return ExtractorConfig("frozen", candidate.place[:1], candidate.place[1:], config.seed).build(backbone)


def _sampler(backbone: Backbone) -> SamplerName | None:
    """Return the sampler of a backbone's samples; None for a backbone that generates none.

    An untrained network generates noise, which is not worth measuring.
    """
    if not backbone.generates or backbone.spec.startswith("random:"):
        return None
    if not isinstance(backbone, DiffusionBackbone):
        return "ddim"  # a generator that needs one pass ignores the sampler
    return "dpm-solver" if isinstance(backbone.process, VariancePreserving) else "own"


def _score(result: ProbeResult, metric: Metric) -> Score:
    value, spread = mean_of(result.seeds, metric), deviation_of(result.seeds, metric)
    if spread is not None:
        return Score(value, (value - spread, value + spread))
    return Score(value, result.seeds[0].interval if metric == "top1" else (value, value))


@dataclass(frozen=True)
class _Features:
    """What is measured of a backbone's place on at most `_RANKED` training images.

    Attributes:
        means: (N, C) float32, the maps averaged over positions.
        views: their alignment and uniformity.
    """

    means: Tensor
    views: Views


def _features(
    config: CompareConfig, data: ImageData, candidate: _Candidate, process: Accelerator
) -> _Features:
    """Read a backbone's place."""
    split = data.train.subset(balanced(data.train, _RANKED, config.seed))
    extractor = _extractor(config, candidate, process.device)
    reading = Reading(config.workers, config.on_bad_image, [])
    rows, place = torch.arange(len(split)), candidate.place
    means = mean_features(reading, extractor, split, rows)[place]
    return _Features(means, measure_views(reading, extractor, split, rows)[place])


def _geometry(features: _Features, first: _Features) -> dict[str, float | None]:
    """Return the measures of `GEOMETRY`; `first` are the features of the first backbone."""
    means, views = features.means.double(), features.views
    near = cknna(means, first.means) if len(means) >= LEAST_IMAGES else math.nan
    measured = effective_rank(means.T @ means), views.alignment, views.uniformity, near
    return dict(zip(GEOMETRY, map(finite, measured), strict=True))


def _images_per_second(
    config: CompareConfig, data: ImageData, candidates: list[_Candidate], process: Accelerator
) -> list[float]:
    """Return the speed at which each backbone gives the maps of its place.

    Backbones take turns, so that other load on the machine affects all of them alike.
    """
    pilot = data.train.subset(balanced(data.train, READ_BATCH, config.seed))
    extractors = [_extractor(config, candidate, process.device) for candidate in candidates]
    seconds: list[list[float]] = [[] for _ in extractors]
    for _ in range(1 + _TIMINGS):  # the first reading also warms up
        for taken, extractor in zip(seconds, extractors, strict=True):
            began = time.perf_counter()
            read_features(extractor, 2, pilot, process, Reading(config.workers, config.on_bad_image, []))
            taken.append(time.perf_counter() - began)
    return [len(pilot) / min(taken[1:]) for taken in seconds]


def _write(
    opened: OpenedRun[ImageData], candidates: list[_Candidate], speeds: list[float], run: RunDirectory
) -> CompareResult:
    """Write the table, the plot and the report."""
    config, data = opened.config, opened.data
    first = candidates[0]
    scored = tuple(
        _scores(candidate, first, speed / speeds[0], data.metric)
        for candidate, speed in zip(candidates, speeds, strict=True)
    )
    distances = (candidate.distance for candidate in candidates)
    measured = next((distance for distance in distances if distance is not None), None)
    result = CompareResult(
        out=config.out,
        backbones=scored,
        titles={trial.key: trial.title for trial in config.trials},
        metric=data.metric,
        test_images=next(iter(first.results.values())).seeds[0].test_images,
        feature_space=measured.space if measured else None,
        samples=config.samples if measured else 0,
    )
    run.write("table.csv", _table(scored))
    names = [scores.name for scores in scored]
    dots: dict[str, list[tuple[float, tuple[float, float]]]] = {}
    for key, title in result.titles.items():
        dots[title] = [(scores.scores[key].value, scores.scores[key].interval) for scores in scored]
    figure = protocol_dots(names, dots)
    run.write_with("compare.png", partial(write_png, figure))
    seeds = range(config.seed, config.seed + config.seeds)
    report = compare_report(
        backbones=scored,
        data=data.name,
        test_images=result.test_images,
        titles=result.titles,
        swept=config.sweep,
        seeds=len(seeds),
        figure=figure,
        metric=data.metric,
        distances=_distances(config, measured),
        provenance={
            "Command": shown_command(config),
            **{
                f"Backbone {k}": f"{candidate.spec}, fingerprint {candidate.fingerprint[:12]}"
                for k, candidate in enumerate(candidates, start=1)
            },
            "Seeds": ", ".join(map(str, seeds)),
            "Timing": f"{READ_BATCH} images, the fastest of {_TIMINGS} readings, backbones in turns",
            **opened.provenance(),
        },
        beneath=reports_of(config.out, _beneath(config)),
    )
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _beneath(config: CompareConfig) -> dict[str, str | Path]:
    """Return the runs of a comparison, and those whose networks it compares, by title."""
    runs: dict[str, str | Path] = {}
    for spec in config.backbones:
        runs[f"{spec}, the backbone"] = spec
        runs[f"{spec}, sweep"] = config.folder(spec) / "sweep"
        runs |= {f"{spec}, {trial.title}": config.folder(spec) / trial.key for trial in config.trials}
    return runs


def _scores(candidate: _Candidate, first: _Candidate, speed: float, metric: Metric) -> BackboneScores:
    """Return the scores of a backbone, and its paired differences from the first one."""
    differences = {
        key: paired_difference(result.evaluations[0], first.results[key].evaluations[0])
        for key, result in candidate.results.items()
    }
    return BackboneScores(
        name=candidate.spec,
        place=candidate.place,
        log_snr=finite(candidate.process.log_snr(candidate.place[1])),
        parameters=candidate.parameters,
        relative_speed=speed,
        scores={key: _score(result, metric) for key, result in candidate.results.items()},
        differences=differences,
        frechet=None if candidate.distance is None else candidate.distance.sample_distance.frechet,
        **candidate.geometry,
        ece={key: result.ece for key, result in candidate.results.items() if result.ece is not None},
    )


def _distances(config: CompareConfig, measured: FidelityResult | None) -> str:
    """Return the report's sentence about the Fréchet distances; empty if there are none."""
    if measured is None:
        return ""
    return (
        f"The Fréchet distance is measured between {counted(config.samples, 'sample')} (seed {config.seed}; "
        "20 steps of DPM-Solver++ for variance-preserving networks, and of their own sampler for others) and "
        f"{measured.real_images:,} {measured.real} in the features of {measured.space}. "
        f"{caution(config.samples, measured.dimensions)}"
    ).strip()


def _table(scored: tuple[BackboneScores, ...]) -> str:
    """Return the text of table.csv, one line for each backbone and protocol."""
    trial, accuracy = ("backbone", "block", "noise_step", "log_snr", "protocol"), ("accuracy", "low", "high")
    others = ("parameters", "relative_speed", "frechet_distance", *GEOMETRY, "ece")
    rows: list[list[object]] = [[*trial, *accuracy, *others]]
    for backbone in scored:
        log_snr = "" if backbone.log_snr is None else f"{backbone.log_snr:.4f}"
        frechet = "" if backbone.frechet is None else f"{backbone.frechet:.4f}"
        measures = (getattr(backbone, name) for name in GEOMETRY)
        geometry = ("" if value is None else f"{value:.4f}" for value in measures)
        last = (backbone.parameters, f"{backbone.relative_speed:.3f}", frechet, *geometry)
        for key, score in backbone.scores.items():
            shares = [f"{share:.4f}" for share in (score.value, *score.interval)]
            ece = f"{backbone.ece[key]:.4f}" if key in backbone.ece else ""
            rows.append([backbone.name, *backbone.place, log_snr, key, *shares, *last, ece])
    return csv_text(rows)
