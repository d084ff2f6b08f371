"""`difflens report`: the accuracies of heads on one backbone, its samples, and a memorisation check."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from difflens.backbones.base import Backbone
from difflens.backbones.config import BackboneConfig
from difflens.configs.command_line import shown_command
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.options import resolve
from difflens.configs.report import ReportConfig
from difflens.data.images import fit, read_image, to_float, to_uint8
from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import ImageSplit, MemorySplit
from difflens.errors import DiffLensError, expanded, listing
from difflens.extractors.cache import Reading
from difflens.generation.fidelity import at_random, fidelity
from difflens.generation.grid import image_grid
from difflens.generation.samplers import make_sampler, sample
from difflens.metrics.memorisation import UNSEEN, Seen, find_nearest
from difflens.models.feature_space import FeatureSpace
from difflens.reports.demo import BASELINES
from difflens.reports.html import Section
from difflens.reports.memorisation import copying_section
from difflens.reports.report import backbone_report, samples_picture
from difflens.results.demo import DemoResult
from difflens.results.fidelity import FidelityResult
from difflens.results.probe import deviation_of, mean_of, read_seeds
from difflens.results.report import HeadScore, ReportResult
from difflens.run.directory import FINISHED, read_log
from difflens.run.files import write_text
from difflens.run.processes import accelerator
from difflens.run.provenance import environment


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
        pretrained: folder of a pretrain run; None without one.
        trained_on: configuration of the pretrain run; empty without one.
        data: data of the first probe or demo run; None without one.
    """

    backbone: Backbone | None = None
    sources: list[BackboneConfig] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    heads: list[HeadScore] = field(default_factory=list)
    distances: list[FidelityResult] = field(default_factory=list)
    generated: Path | None = None
    pretrained: Path | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


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
    if config.features is not None:
        evidence.distances.append(_measure(config, evidence))
    page = _Page(config, evidence, backbone, fingerprint).render()
    write_text(out, page)
    return ReportResult(path=out, heads=tuple(evidence.heads), distances=tuple(evidence.distances))


def _out(config: ReportConfig) -> Path:
    """Return the path of the report; its default lies in the first run."""
    first = Path(config.runs[0])
    if config.out is None and not (first / "config.yaml").is_file():
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
        if not (path / "config.yaml").is_file():
            _load_backbone(name, BackboneConfig(name), evidence)
            continue
        run = _read(path / "config.yaml")
        command = str(run.get("command"))
        if command not in _READERS:
            raise DiffLensError(f"{name} is a run of {command}; a report reads {listing(list(_READERS))}")
        if not (path / ("model" if command == "pretrain" else FINISHED)).exists():
            raise DiffLensError(f"{name} is not finished: `difflens {command}` goes on with --resume")
        try:
            _READERS[command](name, path, run, evidence)
        except (KeyError, TypeError) as error:
            raise DiffLensError(f"{name} is damaged, or of another version of difflens: {error!r}") from error
    return evidence


def _read_pretrain(name: str, path: Path, run: dict[str, Any], evidence: _Evidence) -> None:
    _load_backbone(name, BackboneConfig(str(path / "model")), evidence)
    evidence.pretrained, evidence.trained_on = path, run


def _read_probe(name: str, path: Path, run: dict[str, Any], evidence: _Evidence) -> None:
    model = _read(path / "model" / "config.json")
    evidence.data = evidence.data or run["data"]
    _name_backbone(name, dict(model["backbone"]), evidence)
    seeds = read_seeds(_read(path / FINISHED))
    extractor = model["extractor"]
    plural = "s" * (len(extractor["blocks"]) > 1)
    places = f"block{plural} {listing(extractor['blocks'])} at t = {listing(extractor['noise_steps'])}"
    kind = "" if extractor["name"] == "frozen" else f", {extractor['name']}"
    evidence.heads.append(
        HeadScore(
            title=f"{model['head']['name']}{kind}, {places}",
            data=run["data"],
            top1=mean_of(seeds, "top1"),
            interval=seeds[0].top1_interval_95 if len(seeds) == 1 else None,
            deviation=deviation_of(seeds, "top1"),
            train_images=seeds[0].train_images,
            test_images=seeds[0].test_images,
            trainable_parameters=seeds[0].trainable_parameters,
        )
    )


def _read_demo(name: str, path: Path, run: dict[str, Any], evidence: _Evidence) -> None:
    model = _read(path / "model" / "config.json")
    evidence.data = evidence.data or run["data"]
    _name_backbone(name, dict(model["backbone"]), evidence)
    result = DemoResult.from_metrics(_read(path / FINISHED), path)
    for head, row in result.results.items():
        if head not in BASELINES:  # baselines do not read this backbone
            evidence.heads.append(
                HeadScore(
                    title=head,
                    data=run["data"],
                    top1=row.top1,
                    interval=row.top1_interval_95,
                    deviation=None,
                    train_images=result.train_images,
                    test_images=result.test_images,
                    trainable_parameters=row.trainable_parameters,
                )
            )


def _read_generate(name: str, path: Path, run: dict[str, Any], evidence: _Evidence) -> None:
    keys = ("num_head_channels", "noise_schedule", "image_size")
    source = {
        "spec": run["backbone"],
        "fingerprint": run["backbone_fingerprint"],
        **{k: run[k] for k in keys},
    }
    _name_backbone(name, source, evidence)
    evidence.generated = path


def _read_fidelity(name: str, path: Path, run: dict[str, Any], evidence: _Evidence) -> None:
    result = FidelityResult.from_metrics(_read(path / FINISHED))
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


def _name_backbone(name: str, source: dict[str, Any], evidence: _Evidence) -> None:
    """Record the backbone that a run names in its configuration."""
    evidence.fingerprints[name] = source.pop("fingerprint")
    evidence.sources.append(BackboneConfig(**source))


def _backbone(evidence: _Evidence) -> Backbone:
    if evidence.backbone is None and not evidence.sources:
        raise DiffLensError("a fidelity run alone has no backbone: name the generate run or the backbone too")
    backbone = evidence.backbone or evidence.sources[0].load()
    if not backbone.generates:
        raise DiffLensError(f"{backbone.spec} does not generate: there are no samples to report")
    return backbone


def _measure(config: ReportConfig, evidence: _Evidence) -> FidelityResult:
    """Measure the distance of the generated images from test images in the features of the configuration."""
    assert config.features is not None
    data = config.data or evidence.data or evidence.trained_on.get("data")
    if evidence.generated is None or data is None:
        missing = "a run of `difflens generate`" if evidence.generated is None else "--data"
        raise DiffLensError(f"--features measures generated images against test images: name {missing}")
    return fidelity(
        FidelityConfig(
            samples=evidence.generated,
            data=data,
            features=config.features,
            seed=config.seed,
            workers=config.workers,
            on_bad_image=config.on_bad_image,
            device=config.device,
        )
    )


class _Page:
    """The HTML page about a backbone."""

    def __init__(self, config: ReportConfig, evidence: _Evidence, backbone: Backbone, fingerprint: str):
        self.config, self.evidence, self.backbone, self.fingerprint = config, evidence, backbone, fingerprint
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
            log=[] if evidence.pretrained is None else read_log(evidence.pretrained),
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
            run = _read(folder / "config.yaml")
            paths = sorted((folder / "images").glob("??????.png"))[:count]
            images, steps = "s" * (len(paths) != 1), "s" * (run["steps"] != 1)
            source = f"{folder}: {run['sampler']}, {run['steps']} step{steps}."
            caption = f"The first {len(paths)} image{images} of {source}"
            return torch.stack([read_image(path) for path in paths]), caption
        samples = sample(self.backbone, count, seed=self.config.seed, batch_size=min(count, 64))
        sampler = make_sampler(self.backbone)
        settings = f"{sampler.name}, steps: {sampler.steps}, seed {self.config.seed}"
        return to_uint8(samples), f"{count} sample{'s' * (count != 1)}, {settings}."

    def _memorisation(self, samples: torch.Tensor) -> Section | None:
        """Compare the samples with training images; None without training images."""
        config, evidence = self.config, self.evidence
        trained_on = evidence.trained_on.get("data")
        data = config.data or trained_on or evidence.data
        if data is None:
            return None
        train, test = _splits(data)
        if data == trained_on:
            train = train.first(evidence.trained_on.get("limit"))
        backbone = self.backbone
        space = FeatureSpace.of(backbone, seed=config.seed)
        reading = Reading(config.workers, config.on_bad_image, self.skipped)

        def features(split: ImageSplit) -> Iterator[Seen]:
            for part in space.read(split, reading):
                yield part.batch.images, part.vectors, part.batch.rows

        fitted, vectors, rows = (
            torch.cat(parts) for parts in zip(*features(MemorySplit("samples", samples)), strict=True)
        )
        unseen = None if test is None else features(at_random(test, UNSEEN, config.seed))
        neighbours = find_nearest((fitted, vectors, rows), features(train), unseen, space.name)

        def train_images(rows: torch.Tensor) -> torch.Tensor:
            images = (train.image(int(row)) for row in rows)
            return torch.stack([fit(image, backbone.in_channels, backbone.image_size) for image in images])

        note = ", on which it was trained" if data == trained_on else ""
        searched = f"the {len(train):,} training images of {data}{note}"
        return copying_section(fitted.cpu(), neighbours, train_images, searched)


def _splits(data: str) -> tuple[ImageSplit, ImageSplit | None]:
    """Return training images, and test images; None where there are none."""
    folder = expanded(data.removeprefix("folder:"))
    if folder.is_dir() and not any((folder / name).is_dir() for name in ("test", "val")):
        return load_unlabelled(data), None
    loaded = load_data(data, labels=False)
    return loaded.train, loaded.test


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file of a run."""
    try:
        content = (yaml.safe_load if path.suffix == ".yaml" else json.loads)(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DiffLensError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DiffLensError(f"{path} holds no mapping, so difflens did not write it")
    return content
