"""`difflens report`: how well one backbone is read, how well it generates, and whether it memorised."""

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
from difflens.errors import DiffLensError, listing
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
from difflens.run.files import replace_with
from difflens.run.processes import accelerator
from difflens.run.provenance import environment


@dataclass
class _Found:
    """What the runs say.

    Attributes:
        backbone: where a backbone or a pretrain run was named.
        named: how other runs name theirs.
        fingerprints: of the backbone, by run.
        heads: how well heads read it.
        distances: what fidelity runs measured.
        generated: a generate run.
        pretrained: a pretrain run.
        trained_on: its configuration.
        data: of the first probe.
    """

    backbone: Backbone | None = None
    named: list[BackboneConfig] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    heads: list[HeadScore] = field(default_factory=list)
    distances: list[FidelityResult] = field(default_factory=list)
    generated: Path | None = None
    pretrained: Path | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


def report(config: ReportConfig) -> ReportResult:
    """Run `config` and write the file.

    Raises:
        DiffLensError: a run is not finished, of an unknown kind or of another backbone, there is no diffusion backbone,
            data cannot be loaded, or the file exists.
    """
    config = resolve(config)
    process = accelerator(config.device)
    if process.num_processes > 1:
        raise DiffLensError("report runs in one process")
    if not config.runs:
        raise DiffLensError("nothing to report on: name run directories or a backbone")
    out = _out(config)
    found = _look(config)
    backbone = _backbone(found).to(process.device)
    fingerprint = backbone.fingerprint()
    wrong = [run for run, each in found.fingerprints.items() if each != fingerprint]
    if wrong:
        raise DiffLensError(
            f"{listing(wrong)} and {backbone.spec} are of different backbones: a report is of one, so name only its runs"
        )
    if config.features is not None:
        found.distances.append(_measure(config, found))
    page = _Page(config, found, backbone, fingerprint).render()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_with(out, lambda path: path.write_text(page))
    except OSError as error:
        raise DiffLensError(f"{out} cannot be written: {error.strerror}") from error
    return ReportResult(path=out, heads=tuple(found.heads), distances=tuple(found.distances))


def _out(config: ReportConfig) -> Path:
    first = Path(config.runs[0])
    if config.out is None and not (first / "config.yaml").is_file():
        raise DiffLensError(f"{first} is no run directory: name the report's file with --out")
    out = config.out or first / "backbone.html"
    if out.exists():
        raise DiffLensError(f"{out} exists: name another file with --out")
    return out


def _look(config: ReportConfig) -> _Found:
    found = _Found()
    for name in config.runs:
        path = Path(name)
        if not (path / "config.yaml").is_file():
            _load_backbone(name, BackboneConfig(name), found)
            continue
        run = _read(path / "config.yaml")
        command = str(run.get("command"))
        if command not in _READERS:
            raise DiffLensError(f"{name} is a run of {command}; a report reads {listing(list(_READERS))}")
        if not (path / ("model" if command == "pretrain" else FINISHED)).exists():
            raise DiffLensError(f"{name} is not finished: `difflens {command}` goes on with --resume")
        try:
            _READERS[command](name, path, run, found)
        except (KeyError, TypeError) as error:
            raise DiffLensError(f"{name} is damaged, or of another version of difflens: {error!r}") from error
    return found


def _read_pretrain(name: str, path: Path, run: dict[str, Any], found: _Found) -> None:
    _load_backbone(name, BackboneConfig(str(path / "model")), found)
    found.pretrained, found.trained_on = path, run


def _read_probe(name: str, path: Path, run: dict[str, Any], found: _Found) -> None:
    model = _read(path / "model" / "config.json")
    found.data = found.data or run["data"]
    _name_backbone(name, dict(model["backbone"]), found)
    seeds = read_seeds(_read(path / FINISHED))
    read = model["extractor"]
    plural = "s" * (len(read["blocks"]) > 1)
    where = f"block{plural} {listing(read['blocks'])} at t = {listing(read['noise_steps'])}"
    kind = "" if read["name"] == "frozen" else f", {read['name']}"
    found.heads.append(HeadScore(
        title=f"{model['head']['name']}{kind}, {where}",
        data=run["data"],
        top1=mean_of(seeds, "top1"),
        interval=seeds[0].top1_interval_95 if len(seeds) == 1 else None,
        deviation=deviation_of(seeds, "top1"),
        train_images=seeds[0].train_images,
        test_images=seeds[0].test_images,
        trainable_parameters=seeds[0].trainable_parameters,
    ))  # fmt: skip


def _read_demo(name: str, path: Path, run: dict[str, Any], found: _Found) -> None:
    model = _read(path / "model" / "config.json")
    found.data = found.data or run["data"]
    _name_backbone(name, dict(model["backbone"]), found)
    result = DemoResult.from_metrics(_read(path / FINISHED), path)
    for head, row in result.results.items():
        if head not in BASELINES:  # not of this backbone
            found.heads.append(HeadScore(
                title=head, data=run["data"], top1=row.top1, interval=row.top1_interval_95, deviation=None,
                train_images=result.train_images, test_images=result.test_images,
                trainable_parameters=row.trainable_parameters,
            ))  # fmt: skip


def _read_generate(name: str, path: Path, run: dict[str, Any], found: _Found) -> None:
    keys = ("num_head_channels", "noise_schedule", "image_size")
    source = {
        "spec": run["backbone"],
        "fingerprint": run["backbone_fingerprint"],
        **{k: run[k] for k in keys},
    }
    _name_backbone(name, source, found)
    found.generated = path


def _read_fidelity(name: str, path: Path, run: dict[str, Any], found: _Found) -> None:
    result = FidelityResult.from_metrics(_read(path / FINISHED))
    if result.source is None:
        raise DiffLensError(
            f"{name} measured images that are not of `difflens generate`: nobody knows whose they are"
        )
    found.fingerprints[name] = result.source.backbone_fingerprint
    found.distances.append(result)


_READERS = {
    "pretrain": _read_pretrain, "probe": _read_probe, "demo": _read_demo, "generate": _read_generate,
    "fidelity": _read_fidelity,
}  # fmt: skip


def _load_backbone(name: str, source: BackboneConfig, found: _Found) -> None:
    found.backbone = source.load()
    found.fingerprints[name] = found.backbone.fingerprint()


def _name_backbone(name: str, source: dict[str, Any], found: _Found) -> None:
    found.fingerprints[name] = source.pop("fingerprint")
    found.named.append(BackboneConfig(**source))


def _backbone(found: _Found) -> Backbone:
    if found.backbone is None and not found.named:
        raise DiffLensError("a fidelity run alone has no backbone: name the generate run or the backbone too")
    backbone = found.backbone or found.named[0].load()
    if not backbone.generates:
        raise DiffLensError(f"{backbone.spec} does not generate: there is no second half to report")
    return backbone


def _measure(config: ReportConfig, found: _Found) -> FidelityResult:
    assert config.features is not None
    data = config.data or found.data or found.trained_on.get("data")
    if found.generated is None or data is None:
        missing = "a run of `difflens generate`" if found.generated is None else "--data"
        raise DiffLensError(f"--features measures generated images against test images: name {missing}")
    return fidelity(FidelityConfig(
        samples=found.generated, data=data, features=config.features, seed=config.seed, workers=config.workers,
        on_bad_image=config.on_bad_image, device=config.device,
    ))  # fmt: skip


class _Page:
    def __init__(self, config: ReportConfig, found: _Found, backbone: Backbone, fingerprint: str):
        self.config, self.found, self.backbone, self.fingerprint = config, found, backbone, fingerprint
        self.skipped: list[str] = []

    def render(self) -> str:
        samples, said = self._samples()
        found, backbone = self.found, self.backbone
        return backbone_report(
            backbone=backbone.spec, heads=found.heads, distances=found.distances,
            samples=samples_picture(image_grid(to_float(samples)), said, backbone.image_size),
            memorisation=self._memorisation(samples),
            log=[] if found.pretrained is None else read_log(found.pretrained),
            provenance={
                "Command": shown_command(self.config),
                "Backbone": f"{backbone.spec}, {sum(p.numel() for p in backbone.parameters()):,} parameters, "
                f"fingerprint {self.fingerprint[:12]}",
                **({"Left out": f"{len(self.skipped)} images that cannot be read"} if self.skipped else {}),
                **environment(backbone.device),
            },
        )  # fmt: skip

    def _samples(self) -> tuple[torch.Tensor, str]:
        """uint8 (N, C, S, S), and what they are."""
        count, folder = self.config.samples, self.found.generated
        if folder is not None:
            run = _read(folder / "config.yaml")
            paths = sorted((folder / "images").glob("??????.png"))[:count]
            said = f"The first {len(paths)} images of {folder}: {run['sampler']}, {run['steps']} steps."
            return torch.stack([read_image(path) for path in paths]), said
        images = sample(self.backbone, count, seed=self.config.seed, batch_size=min(count, 64))
        how = make_sampler(self.backbone)
        return to_uint8(images), f"{count} samples, {how.name}, steps: {how.steps}, seed {self.config.seed}."

    def _memorisation(self, samples: torch.Tensor) -> Section | None:
        """Whether the samples are copies of training images; None without any to compare with."""
        config, found = self.config, self.found
        trained_on = found.trained_on.get("data")
        data = config.data or trained_on or found.data
        if data is None:
            return None
        train, test = _splits(data)
        if data == trained_on:
            train = train.first(found.trained_on.get("limit"))
        backbone = self.backbone
        space = FeatureSpace.of(backbone, seed=config.seed)
        reading = Reading(config.workers, config.on_bad_image, self.skipped)

        def seen(split: ImageSplit) -> Iterator[Seen]:
            for each in space.read(split, reading):
                yield each.batch.images, each.vectors, each.batch.rows

        own, vectors, rows = (
            torch.cat(parts) for parts in zip(*seen(MemorySplit("samples", samples)), strict=True)
        )
        unseen = None if test is None else seen(at_random(test, UNSEEN, config.seed))
        neighbours = find_nearest((own, vectors, rows), seen(train), unseen, space.name)

        def images(rows: torch.Tensor) -> torch.Tensor:
            shown = (train.image(int(row)) for row in rows)
            return torch.stack([fit(image, backbone.in_channels, backbone.image_size) for image in shown])

        which = ", on which it was trained" if data == trained_on else ""
        return copying_section(
            own.cpu(), neighbours, images, f"the {len(train):,} training images of {data}{which}"
        )


def _splits(data: str) -> tuple[ImageSplit, ImageSplit | None]:
    """Training images, and test images where there are any."""
    folder = Path(data.removeprefix("folder:")).expanduser()
    if folder.is_dir() and not any((folder / name).is_dir() for name in ("test", "val")):
        return load_unlabelled(data), None
    found = load_data(data, labels=False)
    return found.train, found.test


def _read(path: Path) -> dict[str, Any]:
    try:
        content = (yaml.safe_load if path.suffix == ".yaml" else json.loads)(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DiffLensError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DiffLensError(f"{path} is not what a run writes")
    return content
