"""`difflens rivals`: several backbones on the same images, by the same protocols, in one table and one plot."""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from accelerate import Accelerator

from difflens.analysis.charts import protocol_dots
from difflens.analysis.provenance import environment
from difflens.analysis.rivals_report import Rival, Score, rivals_report
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.blocks import Backbone, DiffusionBackbone
from difflens.data.labels import label_fraction
from difflens.data.loader import OnBadImage
from difflens.data.sources import load_data
from difflens.data.split import ImageData, Metric, every_nth
from difflens.errors import DiffLensError, require
from difflens.feature_space import FeatureSpace
from difflens.features import READ_BATCH, Reading, read_features
from difflens.heads.base import Place
from difflens.model import BackboneConfig, ExtractorConfig
from difflens.noise import ScheduleName
from difflens.runs import FINISHED, RunDirectory, settings_of, shown_command
from difflens.sampling import SamplerName
from difflens.tasks.evaluation import paired_difference
from difflens.tasks.extraction import ExtractConfig, extract
from difflens.tasks.fidelity import FidelityConfig, FidelityResult, caution, fidelity
from difflens.tasks.generation import GenerateConfig, generate
from difflens.tasks.probing import HeadChoice, ProbeConfig, ProbeResult, probe
from difflens.tasks.sweep import SweepConfig, sweep
from difflens.training import accelerator

Protocol = Literal["linear", "attention", "knn", "few"]

_HEADS: dict[Protocol, HeadChoice] = {
    "linear": "linear",
    "attention": "attention",
    "knn": "knn",
    "few": "linear",
}

_TITLES = {"linear": "linear", "attention": "attention", "knn": "k-NN"}

MOST_SCORES = 5
"""Colours that the plot tells apart."""

_TIMINGS = 3  # the fastest of so many counts


@dataclass(frozen=True)
class Trial:
    """A column of the table.

    Attributes:
        key: of folders and files.
        title: for people.
        head: of the run of `probe`.
        label_fraction: of each class that it trains on; None: all.
    """

    key: str
    title: str
    head: HeadChoice
    label_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class RivalsConfig:
    """Compare backbones by the same protocols on the same data: each is a run of `probe`, where the backbone says.

    With --resume what is finished is not done again, and backbones may be added.
    """

    out: Path
    """Run directory; every probe has a folder in it."""
    backbones: tuple[str, ...]
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them.
    The first one is what the others are compared with."""
    data: str = "fashion"
    """Any data that `probe` takes."""
    protocols: tuple[Protocol, ...] = ("linear", "attention", "knn", "few")
    """linear, whose learning rate and weight decay are chosen for each backbone on held-out training images (`probe
    --grid`), since the scale of features differs; attention; knn; few: as linear, with a fraction of the labels."""
    label_fraction: tuple[float, ...] = (0.1,)
    """Of each class, for the protocol few: a column for each."""
    sweep: int | None = None
    """Read each backbone where a sweep over so many training images finds it best. None: where the backbone says."""
    epochs: int | None = None
    """Of every training. None: each head's."""
    width: int | None = None
    """Of the attention head. None: by the channels of the backbone."""
    token_side: int | None = None
    """Side that larger maps are pooled to before the attention head, and in a store. None: the backbone's own, and whole
    maps in a store."""
    limit: int | None = None
    """Train on the first so many images only."""
    store: bool = False
    """Write the features of each backbone into a store that all protocols read: they go through the backbone once
    instead of once each, and are rounded to float16. It stays in the run directory, and can be large."""
    samples: int = 500
    """Images to draw from each trained backbone that generates, for their Fréchet distance to as many test images. 0
    draws none."""
    features: str | None = None
    """The feature space of that distance, as for `fidelity`. None: the first backbone's."""
    seed: int = 0
    """Of the heads' weights, the order of the images, the noise and the choice of labels."""
    seeds: int = 1
    """Repeat with so many seeds, from `seed` up, and give mean and standard deviation."""
    num_head_channels: int = 64
    """Of OpenAI checkpoints, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of OpenAI checkpoints."""
    image_size: int | None = None
    """Overrides the image side that the backbones were trained on, for all of them."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Go on with the comparison in `out`, or add backbones to it."""

    def check(self) -> None:
        """DiffLensError for a value that cannot be right."""
        require(
            epochs=(self.epochs, 1, None), width=(self.width, 1, None), limit=(self.limit, 1, None),
            token_side=(self.token_side, 1, None), seed=(self.seed, 0, 2**31), seeds=(self.seeds, 1, None), workers=(self.workers, 0, None),
            samples=(self.samples, 0, 10**6), sweep=(self.sweep, 2, None),
            num_head_channels=(self.num_head_channels, 1, None), image_size=(self.image_size, 1, None),
        )  # fmt: skip
        if not self.backbones or not self.protocols:
            raise DiffLensError("nothing to compare: --backbones and --protocols each take at least one")
        if self.samples == 1:
            raise DiffLensError("a distance needs at least two images: --samples 0 draws none")
        if "few" in self.protocols and not self.label_fraction:
            raise DiffLensError("the protocol few needs at least one --label-fraction")
        if len(self.trials) > MOST_SCORES:
            raise DiffLensError(
                f"{len(self.trials)} columns of accuracy: a comparison has at most {MOST_SCORES}"
            )
        twice = {name for name in self.backbones if self.backbones.count(name) > 1}
        if twice:
            raise DiffLensError(f"{sorted(twice)[0]} is named twice in --backbones")

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What every backbone goes through."""
        plain = {
            each: Trial(each, _TITLES[each], _HEADS[each], None) for each in self.protocols if each != "few"
        }
        few = [Trial(f"few-{share:g}", f"{100 * share:g} % of labels", _HEADS["few"], share)
               for share in dict.fromkeys(self.label_fraction)]  # fmt: skip
        return tuple(
            trial
            for each in dict.fromkeys(self.protocols)
            for trial in (few if each == "few" else [plain[each]])
        )

    def backbone(self, spec: str) -> BackboneConfig:
        return BackboneConfig.of(self, spec)

    @property
    def _common(self) -> dict[str, Any]:
        """What every run on a backbone is told alike."""
        return {
            "seed": self.seed, "num_head_channels": self.num_head_channels, "noise_schedule": self.noise_schedule,
            "device": self.device,
        }  # fmt: skip

    @property
    def _reading(self) -> dict[str, Any]:
        """What every run that reads the data is told besides."""
        return {"data": self.data, "on_bad_image": self.on_bad_image, "workers": self.workers, **self._common}

    def places(self, spec: str) -> SweepConfig:
        """The run of `sweep` that finds where to read a backbone."""
        return SweepConfig(
            out=self.folder(spec) / "sweep",
            backbone=spec,
            budget=(str(self.sweep),),
            image_size=self.image_size,
            resume=True,
            **self._reading,
        )

    @property
    def space(self) -> str:
        """Where Fréchet distances are measured."""
        return self.features or self.backbones[0]

    def folder(self, spec: str) -> Path:
        """What is done with a backbone lies here."""
        return self.out / quote(spec, safe="")

    def samples_of(self, spec: str) -> Path:
        return self.folder(spec) / "samples"

    def generate(self, spec: str, sampler: SamplerName) -> GenerateConfig:
        """The run of `generate` that draws a backbone's samples."""
        return GenerateConfig(
            out=self.samples_of(spec),
            n=self.samples,
            backbone=spec,
            sampler=sampler,
            image_size=self.image_size,
            resume=True,
            **self._common,
        )

    def fidelity(self, spec: str) -> FidelityConfig:
        """What measures them."""
        return FidelityConfig(
            samples=self.samples_of(spec), features=self.space, limit=self.samples, **self._reading
        )

    def extract(self, spec: str, place: Place) -> ExtractConfig:
        """The run of `extract` that makes a backbone's store."""
        return ExtractConfig(
            out=self.folder(spec) / "store", backbone=spec, blocks=place[:1], noise_steps=place[1:],
            pool=self.token_side or 0, limit=self.limit, image_size=self.image_size, resume=True, **self._reading,
        )  # fmt: skip

    def probe(self, spec: str, trial: Trial, place: Place | None) -> ProbeConfig:
        """The run of `probe` that a trial is, at a place of the backbone's, or where the backbone says."""
        return ProbeConfig(
            out=self.folder(spec) / trial.key, backbone=spec,
            blocks=None if place is None else place[:1],
            noise_steps=None if place is None else place[1:],
            head=trial.head, label_fraction=trial.label_fraction, grid=trial.head == "linear",
            epochs=None if trial.head == "knn" else self.epochs,
            width=self.width if trial.head == "attention" else None,
            pool=self.token_side if trial.head == "attention" else None,
            store=self.folder(spec) / "store" if self.store else None,
            limit=self.limit, seeds=self.seeds, image_size=self.image_size, resume=True, **self._reading,
        )  # fmt: skip


_FREE = ("out", "resume", "device", "workers")


@dataclass(frozen=True)
class RivalsResult:
    """What `rivals` returns.

    Attributes:
        rivals: in the order of the configuration.
        metrics: metrics.json's content.
    """

    rivals: tuple[Rival, ...]
    metrics: dict[str, Any]


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


def rivals(config: RivalsConfig, announce: Callable[[str], object] = lambda line: None) -> RivalsResult:
    """Run `config` and fill its run directory.

    Args:
        announce: is told of each probe that is done.

    Raises:
        DiffLensError: anything in the configuration, the data or a backbone is not what it should be; before anything
            is written if it can be known by then.
    """
    config.check()
    process = accelerator(config.device)
    if process.num_processes > 1:
        raise DiffLensError("rivals run in one process; each of its probes can be run in several")
    data = load_data(config.data)
    for trial in config.trials:
        _check_labels(config, data, trial)  # now rather than after hours
    candidates = [_candidate(config, spec) for spec in config.backbones]
    if config.samples and any(candidate.sampler for candidate in candidates):
        FeatureSpace.load(config.backbone(config.space), None, None, config.seed, process.device)  # as well
    settings = settings_of(config, _FREE) | {"data_fingerprint": data.fingerprint()}
    run = RunDirectory(config.out, "rivals", settings, config.resume, process, growing="backbones")
    with run.working():
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
                found = candidate.distance
                announce(
                    f"{candidate.spec}, Fréchet distance in {found.space}: {found.distances[0].frechet:.4g}"
                )
        speeds = _images_per_second(config, data, candidates, process)
        return _write(config, data, candidates, speeds, run, process)


def _check_labels(config: RivalsConfig, data: ImageData, trial: Trial) -> None:
    """DiffLensError if a trial would be left with too few labels."""
    train = data.train.first(config.limit)
    if trial.label_fraction is not None:
        train = label_fraction(train, trial.label_fraction, config.seed, data.classes)
    if trial.head == "linear" and (train.labels is None or not every_nth(train.labels, 5).any()):
        raise DiffLensError(
            f"the protocol {trial.title} holds out a fifth of each class to choose its learning rate, and no "
            "class has two training images left: give more images or labels"
        )


def _candidate(config: RivalsConfig, spec: str) -> _Candidate:
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
    metrics = result.metrics
    if "runs" in metrics:
        spread = metrics[f"{metric}_std"]
        return Score(metrics[metric], (metrics[metric] - spread, metrics[metric] + spread))
    interval = metrics["top1_interval_95"] if metric == "top1" else (metrics[metric],) * 2
    return Score(metrics[metric], (interval[0], interval[1]))


def _images_per_second(
    config: RivalsConfig, data: ImageData, candidates: list[_Candidate], process: Accelerator
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
    config: RivalsConfig,
    data: ImageData,
    candidates: list[_Candidate],
    speeds: list[float],
    run: RunDirectory,
    process: Accelerator,
) -> RivalsResult:
    first = candidates[0]
    found = tuple(
        Rival(
            candidate.spec, candidate.place, candidate.parameters, speed / speeds[0],
            {key: _score(result, data.metric) for key, result in candidate.results.items()},
            {key: paired_difference(result.evaluations[0], first.results[key].evaluations[0])
             for key, result in candidate.results.items()},
            None if candidate.distance is None else candidate.distance.distances[0].frechet,
        )
        for candidate, speed in zip(candidates, speeds, strict=True)
    )  # fmt: skip
    measured = next((each.distance for each in candidates if each.distance is not None), None)
    some = next(iter(first.results.values())).metrics
    metrics: dict[str, Any] = {
        "metric": data.metric,
        "test_images": some["test_images"],
        "feature_space": measured.space if measured else None,
        "samples": config.samples if measured else 0,
        "backbones": [rival.record() for rival in found],
    }
    run.write("table.csv", _table(found))
    figure = protocol_dots(
        [rival.name for rival in found],
        {each.title: [(r.scores[each.key].value, r.scores[each.key].interval) for r in found]
         for each in config.trials},
    )  # fmt: skip
    run.write_with("rivals.png", partial(figure.savefig, dpi=160, bbox_inches="tight"))
    seeds = range(config.seed, config.seed + config.seeds)
    report = rivals_report(
        rivals=found, data=data.name, test_images=some["test_images"],
        titles={trial.key: trial.title for trial in config.trials}, swept=config.sweep,
        seeds=len(seeds), figure=figure, metric=data.metric, distances=_distances(config, measured), provenance={
            "Command": shown_command("rivals", config),
            "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}",
            **{f"Backbone {k}": f"{each.spec}, fingerprint {each.fingerprint[:12]}"
               for k, each in enumerate(candidates, start=1)},
            "Seeds": ", ".join(map(str, seeds)),
            "Timing": f"{READ_BATCH} images, the fastest of {_TIMINGS} readings, backbones in turns",
            **environment(process.device),
        },
    )  # fmt: skip
    run.write("report.html", report)
    run.write_json(FINISHED, metrics)
    return RivalsResult(found, metrics)


def _distances(config: RivalsConfig, measured: FidelityResult | None) -> str:
    """What the Fréchet distances are, for the report; empty if there are none."""
    if measured is None:
        return ""
    return (
        f"Fréchet distance: {config.samples:,} samples (seed {config.seed}; of diffusion networks by DPM-Solver++ in 20 "
        f"steps) from {measured.real_images:,} {measured.real} in the features of {measured.space}. "
        + caution(config.samples, measured.dimensions)
    ).strip()


def _table(found: tuple[Rival, ...]) -> str:
    """table.csv: a line for each backbone and protocol."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["backbone", "block", "noise_step", "protocol", "accuracy", "low", "high", "parameters", "relative_speed",
                     "frechet_distance"])  # fmt: skip
    for rival in found:
        for key, score in rival.scores.items():
            writer.writerow([
                rival.name, *rival.place, key, *(f"{value:.4f}" for value in (score.value, *score.interval)), rival.parameters,
                f"{rival.relative_speed:.3f}", "" if rival.frechet is None else f"{rival.frechet:.4f}",
            ])  # fmt: skip
    return text.getvalue()
