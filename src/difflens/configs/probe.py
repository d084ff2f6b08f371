"""Options of `difflens probe`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from difflens import presets
from difflens.choices import HeadChoice, HeadName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    CacheOptions,
    Count,
    ExtractorOptions,
    Natural,
    Range,
    ResumeOptions,
    Share,
)
from difflens.configs.train import TrainConfig
from difflens.errors import DiffLensError
from difflens.heads.config import options_without_effect

_TRAINING = ("batch_size", "learning_rate", "weight_decay", "optimizer", "warmup_steps", "epochs", "lr_schedule",
             "step_epochs", "label_smoothing", "mixup", "layer_decay")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CacheOptions, TrainConfig, ExtractorOptions, BackboneOptions, ResumeOptions):
    """Train a head on a backbone's features, and evaluate it once on the test split."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.PROBE

    data: str | None = None
    """fashion, fashion-full, aircraft, cars, cub, dogs, flowers, nabirds, idx:FOLDER, folder:PATH (or the path alone),
    torchvision:NAME, hf:ID. None: the preset's, or fashion."""
    store: Annotated[Path | None, MAY_CHANGE] = None
    """Read the features from a store of `difflens extract` instead of running the backbone."""
    preset: str | None = None
    """A recipe of `difflens.presets.PROBE`, such as paper-attention or diffeed."""
    head: HeadChoice | None = None
    """linear, mlp, cnn, attention, difformer, or knn, which trains nothing; diffeed is the attention head on the feedback
    extractor. None: the preset's, or attention."""
    draws: Count = 1
    """Noise samples that the maps are averaged over."""
    pool: Natural | None = None
    """Side that larger maps are average-pooled to; 0: no pooling. None: 2 for linear, mlp and knn, 16 for the others."""
    width: Count | None = None
    """Width of the head. None: chosen by the channels of the maps."""
    depth: Count | None = None
    """Layers of the head. None: 1 for mlp, 2 for the others."""
    dropout: Annotated[float, Range(0, 0.99)] | None = None
    """Dropout in the head. None: the preset's, or 0."""
    grid: bool = False
    """linear: choose learning rate and weight decay from a grid, on a fifth of the training images."""
    limit: Count | None = None
    """Train on the first so many images only."""
    label_fraction: Share | None = None
    """Train on this share of each class, chosen by the seed, the same for every head."""
    label_list: Path | None = None
    """Train on the images that this file names, one a line."""
    seeds: Count = 1
    """Repeat with so many seeds, from --seed up, and report mean and standard deviation."""

    @property
    def _head(self) -> HeadName:
        head: HeadName = self.chosen("head", "attention")
        return head

    @property
    def _usual(self) -> dict[str, Any]:
        """The recipe of head, extractor and preset."""
        return {
            **presets.TRAINING, **presets.HEADS[self._head],
            **presets.EXTRACTORS[self.chosen("extractor", "frozen")], **presets.PROBE.get(self.preset or "", {}),
        }  # fmt: skip

    @property
    def usual_epochs(self) -> int:
        """Epochs of the recipe, with as many images as it is meant for."""
        return int(self._usual["epochs"])

    @property
    def _online(self) -> bool:
        """Do images go through the backbone in every epoch?"""
        return self.chosen("extractor", "frozen") != "frozen" or self.chosen("augment", "none") != "none"

    def expanded(self) -> Self:
        """The configuration with DifFeed as its head and its extractor."""
        if self.head != "diffeed":
            return self
        if self.extractor not in (None, "feedback"):
            raise DiffLensError(
                f"diffeed is the attention head on the feedback extractor, not on {self.extractor}"
            )
        return replace(self, extractor="feedback", head="attention")

    def recipe(self) -> Mapping[str, Any]:
        recipe = {"data": "fashion", "head": "attention", "extractor": "frozen", **self._usual}
        if "epochs" not in presets.PROBE.get(self.preset or "", {}):
            del recipe["epochs"]  # `usual_epochs` grow where there are few images
        return recipe

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        yield from options_without_effect(self._head)
        if self._head == "knn":
            yield "k-NN trains nothing", _TRAINING
        if self.grid:
            yield "the grid tries rates and decays of its own", ("learning_rate", "weight_decay")
        if self._online:
            yield "only a frozen extractor without augmentation has cached features", ("cache_gigabytes",)
        else:
            yield "cached features keep the noise of the evaluation", ("fresh_noise",)

    def check(self) -> None:
        head = presets.PROBE.get(self.preset or "", {}).get("head", self._head)
        if head != self._head:
            raise DiffLensError(f"the preset {self.preset} is for the head {head}, not {self.head}")
        if self.label_fraction is not None and self.label_list is not None:
            raise DiffLensError("--label-fraction and --label-list both choose the labels: give one of them")
        if self.grid and self._head != "linear":
            raise DiffLensError(f"the grid is for the linear head, not for {self._head}")
        if not self._online:
            return
        if self.store is not None:
            raise DiffLensError(
                "a store holds frozen features of unchanged images: leave out --store, or use a frozen extractor "
                "without --augment"
            )
        if self.grid or self._head == "knn":
            raise DiffLensError(
                "k-NN and the grid read frozen features of unchanged images: leave out --extractor and --augment"
            )
