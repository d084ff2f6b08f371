"""`difflens compare`: several backbones on the same images, by the same protocols, in one table and one plot."""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from accelerate import Accelerator

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.maps import Place
from difflens.choices import SamplerName
from difflens.configs.command_line import shown_command
from difflens.configs.compare import CompareConfig, Trial
from difflens.configs.options import resolve
from difflens.data.labels import label_fraction
from difflens.data.load import load_data
from difflens.data.split import ImageData, Metric, every_nth
from difflens.errors import DiffLensError
from difflens.extractors.cache import READ_BATCH, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.generation.fidelity import fidelity
from difflens.generation.generate import generate
from difflens.metrics.classification import paired_difference
from difflens.models.feature_space import FeatureSpace
from difflens.opening import open_run
from difflens.reports.charts import protocol_dots
from difflens.reports.compare import compare_report
from difflens.results.compare import BackboneScores, CompareResult, Score
from difflens.results.fidelity import FidelityResult, caution
from difflens.results.probe import ProbeResult, deviation_of, mean_of
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment
from difflens.studies.extract import extract
from difflens.studies.sweep import sweep
from difflens.tasks.classification.probe import probe

_TIMINGS = 3  # the fastest of so many counts


@dataclass
class _Candidate:
    """A backbone before and while it is probed."""

    spec: str
    fingerprint: str
    parameters: int
    sampler: SamplerName | None
    place: Place
    distance: FidelityResult | None = None
    results: dict[str, ProbeResult] = field(default_factory=dict)


def compare(config: CompareConfig, announce: Callable[[str], object] = lambda line: None) -> CompareResult:
    """Run `config` and fill its run directory.

    Args:
        announce: is told of each probe that is done.

    Raises:
        DiffLensError: anything in the configuration, the data or a backbone is not what it should be; before anything
            is written if it can be known by then.
    """
    config = resolve(config)
    data = load_data(config.data)
    for trial in config.trials:
        _check_labels(config, data, trial)  # now rather than after hours
    opened = open_run(config, data, one_process="; each of its probes can be run in several")
    process = opened.process
    candidates = [_candidate(config, spec) for spec in config.backbones]
    if config.samples and any(candidate.sampler for candidate in candidates):
        FeatureSpace.load(config.backbone(config.space), None, None, config.seed, process.device)  # as well
    with opened.directory(growing="backbones") as run:
        run.grow()
        for candidate in candidates:
            chosen = None
            if config.sweep is not None:
                best = sweep(config.places(candidate.spec)).recommendation
                run.keep()
                chosen = candidate.place = (best.block, best.noise_step)
                announce(f"{candidate.spec} is read at block {best.block}, t = {best.noise_step}")
            if config.store:
                extract(config.extract(candidate.spec, candidate.place))
                run.keep()
            for trial in config.trials:
                result = probe(config.probe(candidate.spec, trial, chosen))
                run.keep()
                candidate.results[trial.key] = result
                score = _score(result, data.metric)
                announce(f"{candidate.spec}, {trial.title}: {100 * score.value:.2f} %")
            if candidate.sampler is not None and config.samples:
                generate(config.generate(candidate.spec, candidate.sampler))
                run.keep()
                candidate.distance = fidelity(config.fidelity(candidate.spec))
                space, distance = candidate.distance.space, candidate.distance.sample_distance
                announce(f"{candidate.spec}, Fréchet distance in {space}: {distance.frechet:.4g}")
        speeds = _images_per_second(config, data, candidates, process)
        return _write(config, data, candidates, speeds, run, process)


def _check_labels(config: CompareConfig, data: ImageData, trial: Trial) -> None:
    """DiffLensError if a trial would be left with too few labels."""
    train = data.train.first(config.limit)
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
    return _Candidate(spec, backbone.fingerprint(), count, _sampler(backbone), place)


def _sampler(backbone: Backbone) -> SamplerName | None:
    """What draws the samples to measure; None: there are none. Untrained networks draw noise."""
    if not backbone.generates or backbone.spec.startswith("random:"):
        return None
    # of a generator that needs one pass, the default stands for no sampler
    return "dpm-solver" if isinstance(backbone, DiffusionBackbone) else "ddim"


def _score(result: ProbeResult, metric: Metric) -> Score:
    value, spread = mean_of(result.seeds, metric), deviation_of(result.seeds, metric)
    if spread is not None:
        return Score(value, (value - spread, value + spread))
    return Score(value, result.seeds[0].top1_interval_95 if metric == "top1" else (value, value))


def _images_per_second(
    config: CompareConfig, data: ImageData, candidates: list[_Candidate], process: Accelerator
) -> list[float]:
    """How fast each backbone gives the maps of its probes' place, in turns, so that a busy machine treats all alike."""
    pilot = data.train.first(READ_BATCH)
    extractors = []
    for candidate in candidates:
        backbone = config.backbone(candidate.spec).load(process.device)
        place = ExtractorConfig("frozen", candidate.place[:1], candidate.place[1:])
        extractors.append(place.build(backbone))
    seconds: list[list[float]] = [[] for _ in extractors]
    for _ in range(1 + _TIMINGS):  # the first reading also warms up
        for taken, extractor in zip(seconds, extractors, strict=True):
            began = time.perf_counter()
            read_features(extractor, 2, pilot, process, Reading(config.workers, config.on_bad_image, []))
            taken.append(time.perf_counter() - began)
    return [len(pilot) / min(taken[1:]) for taken in seconds]


def _write(
    config: CompareConfig,
    data: ImageData,
    candidates: list[_Candidate],
    speeds: list[float],
    run: RunDirectory,
    process: Accelerator,
) -> CompareResult:
    first = candidates[0]
    scored = tuple(
        BackboneScores(
            candidate.spec, candidate.place, candidate.parameters, speed / speeds[0],
            {key: _score(result, data.metric) for key, result in candidate.results.items()},
            {key: paired_difference(result.evaluations[0], first.results[key].evaluations[0])
             for key, result in candidate.results.items()},
            None if candidate.distance is None else candidate.distance.sample_distance.frechet,
        )
        for candidate, speed in zip(candidates, speeds, strict=True)
    )  # fmt: skip
    measured = next((each.distance for each in candidates if each.distance is not None), None)
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
    figure = protocol_dots(
        [each.name for each in scored],
        {title: [(each.scores[key].value, each.scores[key].interval) for each in scored]
         for key, title in result.titles.items()},
    )  # fmt: skip
    run.write_with("compare.png", partial(figure.savefig, dpi=160, bbox_inches="tight"))
    seeds = range(config.seed, config.seed + config.seeds)
    report = compare_report(
        backbones=scored, data=data.name, test_images=result.test_images, titles=result.titles, swept=config.sweep,
        seeds=len(seeds), figure=figure, metric=data.metric, distances=_distances(config, measured), provenance={
            "Command": shown_command(config),
            "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}",
            **{f"Backbone {k}": f"{each.spec}, fingerprint {each.fingerprint[:12]}"
               for k, each in enumerate(candidates, start=1)},
            "Seeds": ", ".join(map(str, seeds)),
            "Timing": f"{READ_BATCH} images, the fastest of {_TIMINGS} readings, backbones in turns",
            **environment(process.device),
        },
    )  # fmt: skip
    run.write("report.html", report)
    run.write_json(FINISHED, result.metrics())
    return result


def _distances(config: CompareConfig, measured: FidelityResult | None) -> str:
    """What the Fréchet distances are, for the report; empty if there are none."""
    if measured is None:
        return ""
    return (
        f"Fréchet distance: {config.samples:,} samples (seed {config.seed}; of diffusion networks by DPM-Solver++ in 20 "
        f"steps) from {measured.real_images:,} {measured.real} in the features of {measured.space}. "
        + caution(config.samples, measured.dimensions)
    ).strip()


def _table(scored: tuple[BackboneScores, ...]) -> str:
    """table.csv: a line for each backbone and protocol."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["backbone", "block", "noise_step", "protocol", "accuracy", "low", "high", "parameters", "relative_speed",
                     "frechet_distance"])  # fmt: skip
    for each in scored:
        for key, score in each.scores.items():
            writer.writerow([
                each.name, *each.place, key, *(f"{value:.4f}" for value in (score.value, *score.interval)), each.parameters,
                f"{each.relative_speed:.3f}", "" if each.frechet is None else f"{each.frechet:.4f}",
            ])  # fmt: skip
    return text.getvalue()
