"""`difflens report`: the accuracies of heads on one backbone, its samples, and a memorisation check."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from difflens.backbones.base import Backbone
from difflens.backbones.config import BACKBONE_OPTIONS, BackboneConfig
from difflens.configs.command_line import shown_command
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.options import resolve
from difflens.configs.report import ReportConfig
from difflens.data.images import fit, read_image, to_float, to_uint8
from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import ImageSplit, MemorySplit
from difflens.errors import DiffLensError, counted, expanded, listing, named
from difflens.extractors.cache import Reading
from difflens.generation.fidelity import at_random, fidelity
from difflens.generation.grid import image_grid
from difflens.generation.samplers import make_sampler, sample
from difflens.metrics.memorisation import UNSEEN, Seen, find_nearest
from difflens.models.feature_space import FeatureSpace
from difflens.models.saved import TrainedModel, stored_model
from difflens.processes.base import NoiseProcess, in_words
from difflens.reports.demo import BASELINES
from difflens.reports.html import Section, reports_of
from difflens.reports.memorisation import copying_section
from difflens.reports.report import backbone_report, samples_picture
from difflens.results.demo import DemoResult
from difflens.results.fidelity import FidelityResult, SampleSource
from difflens.results.probe import deviation_of, mean_of, read_seeds
from difflens.results.report import HeadScore, ReportResult
from difflens.run.directory import CONFIG, FINISHED, read_log, read_record, read_results
from difflens.run.files import write_text
from difflens.run.processes import accelerator
from difflens.run.provenance import environment
from difflens.run.reading import checked, field_in, read_yaml
from difflens.studies.run_data import RunData


@dataclass
class _Evidence:
    """The evidence about one backbone, collected from runs.

    Attributes:
        backbone: the backbone of the command line or of a pretrain run; None before one is named.
        sources: configurations that load the backbones of other runs.
        fingerprints: fingerprint of the backbone of each run, by name of the run.
        heads: accuracies of heads, from probe and demo runs.
        distances: distances of samples from real images, from fidelity runs.
        generated: folder of a generate run; None without one.
        trained_on: name and data of the pretrain run; None without one.
        log: the records of the pretrain run.
        read: name and data of the first probe or demo run; None without one.
    """

    backbone: Backbone | None = None
    sources: list[BackboneConfig] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    heads: list[HeadScore] = field(default_factory=list)
    distances: list[FidelityResult] = field(default_factory=list)
    generated: Path | None = None
    trained_on: tuple[str, RunData] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    read: tuple[str, RunData] | None = None


def report(config: ReportConfig) -> ReportResult:
    """Collect the evidence about one backbone from runs, generate samples, and write one HTML file.

    Raises:
        DiffLensError: a run is not finished, of an unknown kind or of another backbone; the backbone does not
            generate; data cannot be loaded; or the file exists.
    """
    config = resolve(config)
    process = accelerator(config.device)
    if process.num_processes > 1:
        raise DiffLensError("report runs in one process")
    if not config.runs:
        raise DiffLensError("nothing to report on: name run directories or a backbone")
    out = _out(config)
    evidence = _collect(config)
    backbone = _backbone(evidence).to(process.device)
    fingerprint = backbone.fingerprint()
    others = [run for run, digest in evidence.fingerprints.items() if digest != fingerprint]
    if others:
        raise DiffLensError(
            f"{listing(others)} and {backbone.spec} are of different backbones: a report describes one "
            "backbone, so name only its runs"
        )
    evidence.heads = [_with_noise_steps(head, backbone.process) for head in evidence.heads]
    if config.features is not None:
        evidence.distances.append(_measure(config, evidence))
    page = _Page(config, evidence, backbone, fingerprint, out).render()
    write_text(out, page)
    return ReportResult(path=out, heads=tuple(evidence.heads), distances=tuple(evidence.distances))


def _with_noise_steps(head: HeadScore, process: NoiseProcess) -> HeadScore:
    """Return a head's score with its noise steps, and their log-SNR, in the title."""
    steps = in_words(process.by_noise(head.noise_steps))
    return replace(head, title=f"{head.title} at t = {steps}") if head.noise_steps else head


def _out(config: ReportConfig) -> Path:
    """Return the path of the report; its default lies in the first run."""
    first = Path(config.runs[0])
    if config.out is None and not (first / CONFIG).exists():
        if not first.exists():
            raise DiffLensError(
                f"no such run: {first}; for the report of a backbone, name its file with --out"
            )
        raise DiffLensError(f"{first} is no run directory: name the report's file with --out")
    out = config.out or first / "backbone.html"
    if out.exists():
        raise DiffLensError(f"{out} exists: name another file with --out")
    return out


def _collect(config: ReportConfig) -> _Evidence:
    """Read every run, and load every backbone that is named itself."""
    evidence = _Evidence()
    for name in config.runs:
        path = Path(name)
        if not (path / CONFIG).exists():
            _load_backbone(name, BackboneConfig(name), evidence)
            continue
        run = read_record(path)
        command = run["command"]
        if command not in _READERS:
            raise DiffLensError(
                f"{name} is a run of {command or 'no command'}; a report reads {listing(list(_READERS))}"
            )
        if not (path / ("model" if command == "pretrain" else FINISHED)).exists():
            again = "runs again, into another folder" if command == "fidelity" else "goes on with --resume"
            raise DiffLensError(f"{name} is not finished: `difflens {command}` {again}")
        _READERS[command](name, path, evidence)
    return evidence


def _read_pretrain(name: str, path: Path, evidence: _Evidence) -> None:
    _load_backbone(name, BackboneConfig(str(path / "model")), evidence)
    evidence.trained_on = name, read_yaml(path / CONFIG, RunData)
    evidence.log = read_log(path, "epoch", "step", "loss")


def _read_probe(name: str, path: Path, evidence: _Evidence) -> None:
    record = read_yaml(path / CONFIG, RunData)
    data = record.data
    model = stored_model(path / "model", TrainedModel)
    if evidence.read is None:
        evidence.read = name, record
    _name_backbone(name, model.backbone, model.fingerprint, evidence)
    seeds = read_results(path, read_seeds)
    extractor = model.extractor
    places = named("block", extractor.blocks)
    kind = "" if extractor.name == "frozen" else f", {extractor.name}"
    evidence.heads.append(
        HeadScore(
            title=f"{model.head.name}{kind}, {places}",
            data=data,
            top1=mean_of(seeds, "top1"),
            interval=seeds[0].top1_interval_95 if len(seeds) == 1 else None,
            deviation=deviation_of(seeds, "top1"),
            train_images=seeds[0].train_images,
            test_images=seeds[0].test_images,
            trainable_parameters=seeds[0].trainable_parameters,
            noise_steps=extractor.noise_steps,
        )
    )


def _read_demo(name: str, path: Path, evidence: _Evidence) -> None:
    record = read_yaml(path / CONFIG, RunData)
    data = record.data
    model = stored_model(path / "model", TrainedModel)
    if evidence.read is None:
        evidence.read = name, record
    _name_backbone(name, model.backbone, model.fingerprint, evidence)
    result = read_results(path, lambda metrics: DemoResult.from_metrics(metrics, path))
    for head, row in result.results.items():
        if head not in BASELINES:  # baselines do not read this backbone
            evidence.heads.append(
                HeadScore(
                    title=head,
                    data=data,
                    top1=row.top1,
                    interval=row.top1_interval_95,
                    deviation=None,
                    train_images=result.train_images,
                    test_images=result.test_images,
                    trainable_parameters=row.trainable_parameters,
                )
            )


def _read_generate(name: str, path: Path, evidence: _Evidence) -> None:
    def backbone(run: dict[str, Any]) -> BackboneConfig:
        options = {option: run[option] for option in BACKBONE_OPTIONS if option in run}
        return checked(BackboneConfig, {"spec": field_in(run, "backbone", str), **options})

    source = read_yaml(path / CONFIG, backbone)
    recorded = read_yaml(path / CONFIG, SampleSource)
    _name_backbone(name, source, recorded.backbone_fingerprint, evidence)
    evidence.generated = path


def _read_fidelity(name: str, path: Path, evidence: _Evidence) -> None:
    result = read_results(path, FidelityResult.from_metrics)
    if result.source is None:
        raise DiffLensError(
            f"{name} measured images that are not from `difflens generate`, so their backbone is unknown"
        )
    evidence.fingerprints[name] = result.source.backbone_fingerprint
    evidence.distances.append(result)


_READERS = {
    "pretrain": _read_pretrain,
    "probe": _read_probe,
    "demo": _read_demo,
    "generate": _read_generate,
    "fidelity": _read_fidelity,
}


def _load_backbone(name: str, source: BackboneConfig, evidence: _Evidence) -> None:
    """Load a backbone that the command line or a pretrain run names."""
    evidence.backbone = source.load()
    evidence.fingerprints[name] = evidence.backbone.fingerprint()


def _name_backbone(name: str, source: BackboneConfig, fingerprint: str, evidence: _Evidence) -> None:
    """Record the backbone that a run names in its configuration."""
    evidence.fingerprints[name] = fingerprint
    evidence.sources.append(source)


def _backbone(evidence: _Evidence) -> Backbone:
    if evidence.backbone is None and not evidence.sources:
        raise DiffLensError("a fidelity run alone has no backbone: name the generate run or the backbone too")
    backbone = evidence.backbone or evidence.sources[0].load()
    if not backbone.generates:
        raise DiffLensError(f"{backbone.spec} does not generate: there are no samples to report")
    return backbone


def _data(
    config: ReportConfig, evidence: _Evidence, trained_first: bool
) -> tuple[RunData | None, ImageSplit | None]:
    """Return the data of --data, else of a run, or None without any; and the images of a pretrain run.

    Args:
        trained_first: the pretrain run comes before the runs of heads.

    Raises:
        DiffLensError: the data of the run cannot be loaded, or are other images now.
    """
    runs = [evidence.trained_on, evidence.read]
    named = [run for run in (runs if trained_first else runs[::-1]) if run is not None]
    if config.data is not None:
        same = [record.val_fraction for _, record in named if record.data == config.data]
        fraction = same[0] if same and config.val_fraction is None else config.val_fraction
        return RunData(config.data, val_fraction=fraction), None
    if not named:
        return None, None
    name, record = named[0]
    if config.val_fraction is not None:
        return replace(record, val_fraction=config.val_fraction), None
    if record.command == "pretrain":
        return record, record.load_images(name)
    record.load(name)
    return record, None


def _measure(config: ReportConfig, evidence: _Evidence) -> FidelityResult:
    """Measure the distance of the generated images from test images in the features of the configuration."""
    assert config.features is not None
    data, _ = _data(config, evidence, trained_first=False)
    if evidence.generated is None or data is None:
        missing = "a run of `difflens generate`" if evidence.generated is None else "--data"
        raise DiffLensError(f"--features measures generated images against test images: name {missing}")
    return fidelity(
        FidelityConfig(
            samples=evidence.generated,
            data=data.data,
            val_fraction=data.val_fraction,
            features=config.features,
            seed=config.seed,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
            device=config.device,
        )
    )


class _Page:
    """The HTML page about a backbone."""

    def __init__(
        self, config: ReportConfig, evidence: _Evidence, backbone: Backbone, fingerprint: str, out: Path
    ):
        self.config, self.evidence, self.backbone, self.fingerprint = config, evidence, backbone, fingerprint
        self.folder = out.parent
        self.skipped: list[str] = []

    def render(self) -> str:
        """Generate or read samples, compare them with training images, and return the page."""
        samples, caption = self._samples()
        evidence, backbone = self.evidence, self.backbone
        return backbone_report(
            backbone=backbone.spec,
            heads=evidence.heads,
            distances=evidence.distances,
            samples=samples_picture(image_grid(to_float(samples)), caption, backbone.image_size),
            memorisation=self._memorisation(samples),
            log=evidence.log,
            beneath=reports_of(self.folder, {run: run for run in self.config.runs}),
            provenance={
                "Command": shown_command(self.config),
                "Backbone": f"{backbone.spec}, {sum(p.numel() for p in backbone.parameters()):,} parameters, "
                f"fingerprint {self.fingerprint[:12]}",
                **({"Unreadable images left out": len(self.skipped)} if self.skipped else {}),
                **environment(backbone.device),
            },
        )

    def _samples(self) -> tuple[torch.Tensor, str]:
        """Return samples (N, C, S, S) uint8, and their caption."""
        count, folder = self.config.samples, self.evidence.generated
        if folder is not None:
            run = read_yaml(folder / CONFIG, SampleSource)
            paths = sorted((folder / "images").glob("??????.png"))[:count]
            source = f"{folder}: {run.sampler}, {counted(run.steps, 'step')}."
            caption = f"The first {counted(len(paths), 'image')} of {source}"
            return torch.stack([read_image(path) for path in paths]), caption
        samples = sample(self.backbone, count, seed=self.config.seed, batch_size=min(count, 64))
        sampler = make_sampler(self.backbone)
        settings = f"{sampler.name}, steps: {sampler.steps}, seed {self.config.seed}"
        return to_uint8(samples), f"{counted(count, 'sample')}, {settings}."

    def _memorisation(self, samples: torch.Tensor) -> Section | None:
        """Compare the samples with training images; None without training images."""
        config, evidence = self.config, self.evidence
        found, trained = _data(config, evidence, trained_first=True)
        if found is None:
            return None
        data, trained_on = found.data, None if evidence.trained_on is None else evidence.trained_on[1]
        train, test = _splits(data, found.val_fraction)
        on_these = trained_on is not None and data == trained_on.data
        if trained is not None:
            train = trained
        elif trained_on is not None and on_these:
            train = trained_on.part_of(train)
        backbone = self.backbone
        space = FeatureSpace.of(backbone, seed=config.seed)
        reading = Reading(config.workers, config.on_bad_image, self.skipped)

        def features(split: ImageSplit) -> Iterator[Seen]:
            for part in space.read(split, reading):
                yield part.batch.images, part.vectors, part.batch.rows

        generated = MemorySplit("samples", samples)
        generated.use_test_noise()
        fitted, vectors, rows = (torch.cat(parts) for parts in zip(*features(generated), strict=True))
        unseen = None if test is None else features(at_random(test, UNSEEN, config.seed))
        neighbours = find_nearest((fitted, vectors, rows), features(train), unseen, space.name)

        def train_images(rows: torch.Tensor) -> torch.Tensor:
            images = (train.image(int(row)) for row in rows)
            return torch.stack([fit(image, backbone.in_channels, backbone.image_size) for image in images])

        note = ", on which it was trained" if on_these else ""
        searched = f"the {counted(len(train), 'training image')} of {data}{note}"
        return copying_section(fitted.cpu(), neighbours, train_images, searched)


def _splits(data: str, val_fraction: float | None) -> tuple[ImageSplit, ImageSplit | None]:
    """Return training images, and test images; None where there are none."""
    folder = expanded(data.removeprefix("folder:"))
    splits = any((folder / name).is_dir() for name in ("test", "val"))
    if val_fraction is None and folder.is_dir() and not splits:
        return load_unlabelled(data), None
    loaded = load_data(data, labels=False, val_fraction=val_fraction)
    return loaded.train, loaded.test
