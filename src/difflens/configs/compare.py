"""Options of `difflens compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from difflens.backbones.config import BackboneConfig
from difflens.choices import EvaluationProtocol, HeadChoice, SamplerName
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.options import CheckpointOptions, Count, Range, ReadingOptions, ResumeOptions, Share
from difflens.configs.probe import ProbeConfig
from difflens.configs.sweep import SweepConfig
from difflens.errors import DiffLensError

_HEADS: dict[EvaluationProtocol, HeadChoice] = {
    "linear": "linear",
    "attention": "attention",
    "knn": "knn",
    "few": "linear",
}


_TITLES = {"linear": "linear", "attention": "attention", "knn": "k-NN"}


MOST_SCORES = 5
"""Colours that the plot tells apart."""


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
class CompareConfig(ReadingOptions, CheckpointOptions, ResumeOptions):
    """Compare backbones by the same protocols on the same data: each is a run of `probe`, where the backbone says.

    With --resume what is finished is not done again, and backbones may be added.
    """

    backbones: tuple[str, ...]
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them.
    The first one is what the others are compared with."""
    data: str = "fashion"
    """Any data that `probe` takes."""
    protocols: tuple[EvaluationProtocol, ...] = ("linear", "attention", "knn", "few")
    """linear, whose learning rate and weight decay are chosen for each backbone on held-out training images (`probe
    --grid`), since the scale of features differs; attention; knn; few: as linear, with a fraction of the labels."""
    label_fraction: tuple[Share, ...] = (0.1,)
    """Of each class, for the protocol few: a column for each."""
    sweep: Annotated[int, Range(2)] | None = None
    """Read each backbone where a sweep over so many training images finds it best. None: where the backbone says."""
    epochs: Count | None = None
    """Of every training. None: each head's."""
    width: Count | None = None
    """Of the attention head. None: by the channels of the backbone."""
    token_side: Count | None = None
    """Side that larger maps are pooled to before the attention head, and in a store. None: the backbone's own, and whole
    maps in a store."""
    limit: Count | None = None
    """Train on the first so many images only."""
    store: bool = False
    """Write the features of each backbone into a store that all protocols read: they go through the backbone once
    instead of once each, and are rounded to float16. It stays in the run directory, and can be large."""
    samples: Annotated[int, Range(0, 10**6)] = 500
    """Images to draw from each trained backbone that generates, for their Fréchet distance to as many test images. 0
    draws none."""
    features: str | None = None
    """The feature space of that distance, as for `fidelity`. None: the first backbone's."""
    seeds: Count = 1
    """Repeat with so many seeds, from `seed` up, and give mean and standard deviation."""

    def check(self) -> None:
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

    def extract(self, spec: str, place: tuple[int, int]) -> ExtractConfig:
        """The run of `extract` that makes a backbone's store."""
        return ExtractConfig(
            out=self.folder(spec) / "store", backbone=spec, blocks=place[:1], noise_steps=place[1:],
            pool=self.token_side or 0, limit=self.limit, image_size=self.image_size, resume=True, **self._reading,
        )  # fmt: skip

    def probe(self, spec: str, trial: Trial, place: tuple[int, int] | None) -> ProbeConfig:
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
