"""Options of `difflens compare`."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

from difflens.backbones.config import (
    BACKBONE_OPTIONS,
    FILE_OPTIONS,
    BackboneConfig,
    is_checkpoint,
    names_files,
)
from difflens.choices import EvaluationProtocol, HeadChoice, NormaliseName, SamplerName
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.options import (
    CheckpointOptions,
    Count,
    DataOptions,
    Epochs,
    LogOptions,
    Range,
    ReadingOptions,
    ResumeOptions,
    Share,
    Side,
    Times,
    Width,
)
from difflens.configs.probe import ProbeConfig
from difflens.configs.sweep import SweepConfig
from difflens.errors import DiffLensError, counted

_HEADS: dict[EvaluationProtocol, HeadChoice] = {
    "linear": "linear",
    "attention": "attention",
    "knn": "knn",
    "few": "linear",
}


_TITLES = {"linear": "linear", "attention": "attention", "knn": "k-NN"}

MOST_SCORES = 5
"""The most columns of accuracy: the plot has as many distinct colours."""


@dataclass(frozen=True)
class Trial:
    """A column of the table: one run of `probe` for each backbone.

    Attributes:
        key: the name of its folders and files.
        title: the heading of the column.
        head: the head of the run.
        label_fraction: the share of each class that the head trains on; None: all images.
    """

    key: str
    title: str
    head: HeadChoice
    label_fraction: float | None


@dataclass(frozen=True, kw_only=True)
class CompareConfig(DataOptions, ReadingOptions, CheckpointOptions, LogOptions, ResumeOptions):
    """Compare backbones by the same protocols on the same data.

    Each protocol is a run of `probe` for each backbone. --resume skips finished runs, and backbones may be
    added.
    """

    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)

    backbones: tuple[str, ...]
    """Backbones to compare, the reference first: fashion, photos, a diffusers folder, an OpenAI checkpoint, a
    hub id, timm:NAME or pixels; with the prefix random: the same network untrained."""
    data: str = "fashion"
    """The images and labels: any data that `probe` takes."""
    protocols: tuple[EvaluationProtocol, ...] = ("linear", "attention", "knn", "few")
    """linear, attention and knn train or fill this head on all labels; few trains a linear head on a fraction
    of them. Linear heads choose learning rate and weight decay for each backbone (`probe --grid`), since
    features differ in scale."""
    label_fraction: tuple[Share, ...] = (0.1,)
    """few: shares of each class to train on, 0 to 1; the table has one column for each."""
    sweep: Annotated[int, Range(2, 10**9)] | None = None
    """Read each backbone at the place that a sweep over so many training images recommends. None: at its
    default place."""
    epochs: Epochs | None = None
    """Epochs of each training. None: the head's."""
    width: Width | None = None
    """attention: width of the head. None: chosen by the channels of the backbone."""
    token_side: Side | None = None
    """Side, in cells, that larger maps are pooled to for the attention head, and in a store where every head
    reads the same from such maps. None: chosen by the backbone, and whole maps in a store."""
    normalise: NormaliseName = "standard"
    """linear, knn and few: the normalisation of features, as for `probe`. Whitening needs as many training
    images as the widest backbone has channels."""
    limit: Count | None = None
    """Train on so many images, drawn by the seed: equally many of each class. None: all."""
    store: bool = False
    """Write the features of each backbone into a store, as float16, from which all protocols read. The store
    stays in the run directory for other runs, and can be large."""
    samples: Annotated[int, Range(0, 10**6)] = 500
    """Images to generate with each trained diffusion model or BiGAN, for the Fréchet distance to as many test
    images. 0: none."""
    features: str | None = None
    """Feature space of the Fréchet distance, as for `fidelity`. None: that of the first backbone."""
    seeds: Times = 1
    """Repeat with so many seeds, from --seed up, and report mean and standard deviation."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        if "few" not in self.protocols:
            yield "only the protocol few reads it", ("label_fraction",)
        if "attention" not in self.protocols:
            unread = ("width",) if self.store else ("width", "token_side")
            yield "only the protocol attention reads it", unread
        if {*self.protocols} == {"attention"}:
            yield "the protocol attention does not read it", ("normalise",)
        if not {*self.protocols} - {"knn"}:
            yield "k-NN trains nothing", ("epochs", "log")
        if not self.samples:
            yield "no samples are drawn", ("features",)
        specs = (*self.backbones, self.space)
        if not any(map(is_checkpoint, specs)):
            yield "none of the backbones is a checkpoint file", FILE_OPTIONS
        if not any(map(names_files, specs)):
            others = (name for name in BACKBONE_OPTIONS if name not in (*FILE_OPTIONS, "image_size"))
            yield "none of the backbones is a file, a folder or a model of the hub", others

    def check(self) -> None:
        super().check()
        if not self.backbones or not self.protocols:
            raise DiffLensError(
                "nothing to compare: --backbones and --protocols take at least one value each"
            )
        if self.samples == 1:
            raise DiffLensError("a distance needs at least two images: --samples 0 draws none")
        if "few" in self.protocols and not self.label_fraction:
            raise DiffLensError("the protocol few needs at least one --label-fraction")
        if len(self.trials) > MOST_SCORES:
            raise DiffLensError(
                f"{counted(len(self.trials), 'column')} of accuracy: a comparison has at most {MOST_SCORES}"
            )
        twice = {name for name in self.backbones if self.backbones.count(name) > 1}
        if twice:
            raise DiffLensError(f"{sorted(twice)[0]} is named twice in --backbones")

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The columns of the table: the trials of each backbone."""
        trials = []
        for name in dict.fromkeys(self.protocols):
            if name != "few":
                trials.append(Trial(name, _TITLES[name], _HEADS[name], None))
                continue
            for share in dict.fromkeys(self.label_fraction):
                trials.append(Trial(f"few-{share:g}", f"{100 * share:g} % of labels", _HEADS[name], share))
        return tuple(trials)

    def backbone(self, spec: str) -> BackboneConfig:
        """Return the configuration of the backbone `spec`; inception, the feature space, has no options."""
        return BackboneConfig(spec) if spec == "inception" else BackboneConfig.shared(self, spec)

    def _common(self, spec: str) -> dict[str, Any]:
        """Return the options of all runs on the backbone `spec`."""
        backbone = self.backbone(spec)
        settings = {name: getattr(backbone, name) for name in BACKBONE_OPTIONS}
        return {"seed": self.seed, "device": self.device, **settings}

    def _reading(self, spec: str) -> dict[str, Any]:
        """Return the options of all runs that read the data."""
        reading = {
            "data": self.data,
            "val_fraction": self.val_fraction,
            "on_bad_image": self.on_bad_image,
            "workers": self.workers,
        }
        return {**reading, **self._common(spec)}

    def places(self, spec: str) -> SweepConfig:
        """Return the run of `sweep` that chooses the place at which a backbone is read."""
        assert self.sweep is not None
        return SweepConfig(
            out=self.folder(spec) / "sweep",
            backbone=spec,
            budget=(str(min(self.sweep, self.limit or self.sweep)),),
            resume=True,
            **self._reading(spec),
        )

    @property
    def space(self) -> str:
        """The feature space of the Fréchet distance."""
        return self.features or next(iter(self.backbones), "")

    def folder(self, spec: str) -> Path:
        """Return the folder of a backbone's runs."""
        return self.out / quote(os.fsencode(spec), safe="")

    def samples_of(self, spec: str) -> Path:
        """Return the folder of a backbone's generated images."""
        return self.folder(spec) / "samples"

    def generate(self, spec: str, sampler: SamplerName) -> GenerateConfig:
        """Return the run of `generate` that draws a backbone's samples."""
        return GenerateConfig(
            out=self.samples_of(spec),
            n=self.samples,
            backbone=spec,
            sampler=sampler,
            resume=True,
            **{**self._common(spec), "tap": None},  # images are drawn from the whole network
        )

    def fidelity(self, spec: str) -> FidelityConfig:
        """Return the run of `fidelity` that measures a backbone's samples."""
        reading = self._reading(self.space)
        if self.space == "inception":
            del reading["workers"]  # it reads images by itself
        return FidelityConfig(
            samples=self.samples_of(spec),
            features=self.space,
            limit=self.samples,
            **reading,
        )

    def extract(self, spec: str, place: tuple[int, int | float], pool: int = 0) -> ExtractConfig:
        """Return the run of `extract` that writes a backbone's store, at one place.

        Args:
            pool: the side that larger maps are pooled to; 0: whole maps.
        """
        return ExtractConfig(
            out=self.folder(spec) / "store",
            backbone=spec,
            blocks=place[:1],
            noise_steps=place[1:],
            pool=pool,
            limit=self.limit,
            resume=True,
            **self._reading(spec),
        )

    def probe(self, spec: str, trial: Trial, place: tuple[int, int | float] | None) -> ProbeConfig:
        """Return the run of `probe` for a trial of a backbone, at a place; None: at the backbone's default
        place."""
        # a store's features need no image
        source = (
            {"data": self.data, "val_fraction": self.val_fraction, **self._common(spec)}
            if self.store
            else self._reading(spec)
        )
        return ProbeConfig(
            out=self.folder(spec) / trial.key,
            backbone=spec,
            blocks=None if place is None else place[:1],
            noise_steps=None if place is None else place[1:],
            head=trial.head,
            label_fraction=trial.label_fraction,
            grid=trial.head == "linear",
            normalise=None if trial.head == "attention" else self.normalise,
            epochs=None if trial.head == "knn" else self.epochs,
            log=() if trial.head == "knn" else self.log,
            width=self.width if trial.head == "attention" else None,
            pool=self.token_side if trial.head == "attention" else None,
            store=self.folder(spec) / "store" if self.store else None,
            limit=self.limit,
            seeds=self.seeds,
            resume=True,
            **source,
        )
