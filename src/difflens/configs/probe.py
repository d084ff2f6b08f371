"""Options of `difflens probe`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from difflens import presets
from difflens.choices import HeadChoice, HeadName, MixName, NormaliseName
from difflens.configs.options import (
    MAY_CHANGE,
    BackboneOptions,
    CacheOptions,
    Count,
    DataOptions,
    DryRunOptions,
    ExtractorOptions,
    LogOptions,
    Pool,
    Range,
    ResumeOptions,
    Share,
    Times,
    Width,
)
from difflens.configs.train import TrainConfig
from difflens.errors import DiffLensError
from difflens.heads.config import options_without_effect

# options that k-NN, which trains nothing, does not read
_TRAINING = (
    *("batch_size", "learning_rate", "weight_decay", "optimizer", "warmup_steps", "epochs"),
    *("lr_schedule", "step_epochs", "label_smoothing", "mixup", "layer_decay", "log"),
)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(
    DataOptions,
    DryRunOptions,
    CacheOptions,
    TrainConfig,
    ExtractorOptions,
    BackboneOptions,
    LogOptions,
    ResumeOptions,
):
    """Train a head on a backbone's features, and evaluate it once on the test split."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = presets.PROBE
    LIMITS: ClassVar[tuple[str, ...]] = ("limit",)

    data: str | None = None
    """fashion, fashion-full, aircraft, cars, cub, dogs, flowers, nabirds, idx:FOLDER, folder:PATH or
    csv:FILE (or the path alone), torchvision:NAME or hf:ID. None: the preset's, or that of --store, or
    fashion."""
    store: Annotated[Path | None, MAY_CHANGE] = None
    """A feature store of `difflens extract`, from which features are read. It also names the data and the
    backbone, and without --head all its places are read. None: the backbone computes features."""
    verify: Annotated[bool, MAY_CHANGE] = False
    """Read all files of --store first, and compare them with their checksums."""
    preset: str | None = None
    """A recipe of `difflens.presets.PROBE`, such as paper-attention or diffeed. None: the recipe of the head
    and the extractor."""
    head: HeadChoice | None = None
    """linear, mlp, cnn, attention, difformer, mix, or knn, which trains nothing; diffeed is the attention
    head on the feedback extractor. None: the preset's, or attention, or difformer for several blocks or
    noise steps."""
    mix: MixName | None = None
    """mix: learned weights over blocks and noise steps, one set for the image, or spatial: one for each
    position. None: image."""
    draws: Times = 1
    """Number of noise samples that the maps are averaged over."""
    pool: Pool | None = None
    """Side, in cells, that larger maps are average-pooled to; 0: no pooling. None: 2 for linear, mlp and knn;
    4 for attention, difformer and mix on the bundled networks; else 16. Pixels are not pooled."""
    width: Width | None = None
    """Width of the head. None: chosen by the channels of the maps."""
    depth: Annotated[int, Range(1, 100)] | None = None
    """Layers of the head. None: 1 for mlp, 2 for the others."""
    dropout: Annotated[float, Range(0, 0.99)] | None = None
    """Dropout probability in the head. None: the preset's, or 0."""
    normalise: NormaliseName | None = None
    """linear, knn and mix: none; standard, each channel of a place with mean 0 and variance 1 over training
    images and positions; or whiten, also without correlation between channels (ZCA, with a thousandth of the
    mean variance added). It is folded into the saved head. None: the preset's, or whiten for linear and
    knn on cached features (standard with fewer training images than channels), else none."""
    grid: bool = False
    """linear: choose learning rate and weight decay from a grid, by the accuracy on a held-out fifth of the
    training images."""
    limit: Count | None = None
    """Train on so many images, drawn by the seed: equally many of each class. None: all."""
    label_fraction: Share | None = None
    """Train on this share of each class, 0 to 1, drawn by the seed, the same for all heads. None: all
    labels."""
    label_list: Path | None = None
    """Train on the images that this text file names, one a line. None: all images."""
    seeds: Times = 1
    """Repeat with so many seeds, from --seed up, and report mean and standard deviation."""

    @property
    def _head(self) -> HeadName:
        """The head that the options and the preset choose: several places need one that fuses them."""
        several = len(self.blocks or ()) > 1 or len(self.noise_steps or ()) > 1
        head: HeadName = self.chosen("head", "difformer" if several else "attention")
        return head

    @property
    def _training(self) -> dict[str, Any]:
        """The recipe of head, extractor and preset; the last of them takes precedence."""
        extractor = presets.EXTRACTORS[self.chosen("extractor", "frozen")]
        preset = presets.PROBE.get(self.preset or "", {})
        return {**presets.TRAINING, **presets.HEADS[self._head], **extractor, **preset}

    @property
    def usual_epochs(self) -> int:
        """The epochs of the recipe, for the number of images that it is made for."""
        return int(self._training["epochs"])

    @property
    def _online(self) -> bool:
        """True if images go through the backbone in each epoch."""
        return self.chosen("extractor", "frozen") != "frozen" or self.chosen("augment", "none") != "none"

    @property
    def normalises_by_images(self) -> bool:
        """True if nothing names a normalisation of the features, so the number of images decides it."""
        return self._head in ("linear", "knn") and self.chosen("normalise") is None and not self._online

    def expanded(self) -> Self:
        """Return the configuration with the head diffeed replaced by the head and the extractor of
        DifFeed."""
        if self.head != "diffeed":
            return self
        if self.extractor not in (None, "feedback"):
            raise DiffLensError(
                f"diffeed is the attention head on the feedback extractor, not on {self.extractor}"
            )
        return replace(self, extractor="feedback", head="attention")

    def recipe(self) -> Mapping[str, Any]:
        recipe = {
            "data": "fashion",
            "head": self._head,
            "extractor": "frozen",
            "normalise": "none",
            **self._training,
        }
        if self.normalises_by_images:
            del recipe["normalise"]  # `usual_normalisation` chooses it
        if self._head == "mix":
            recipe["mix"] = "image"
        if "epochs" not in presets.PROBE.get(self.preset or "", {}):
            del recipe["epochs"]  # `usual_epochs` are increased for few images, which are counted later
        return recipe

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        yield from options_without_effect(self._head)
        if self.store is None:
            yield "without --store there is nothing to verify", ("verify",)
        else:
            yield "features are read from --store, not from images", ("on_bad_image", "workers")
        if self._head == "knn":
            yield "k-NN trains nothing", _TRAINING
        if self.grid:
            yield "the grid has its own learning rates and weight decays", ("learning_rate", "weight_decay")
        if self._online:
            yield "only a frozen extractor without augmentation has cached features", ("cache_gigabytes",)
        else:
            yield "cached features keep the noise of the evaluation", ("fresh_noise",)

    def check(self) -> None:
        super().check()
        head = presets.PROBE.get(self.preset or "", {}).get("head", self._head)
        if head != self._head:
            raise DiffLensError(f"the preset {self.preset} is for the head {head}, not {self.head}")
        if self.label_fraction is not None and self.label_list is not None:
            raise DiffLensError(
                "--label-fraction and --label-list both choose the labels: give only one of them"
            )
        if self.grid and self._head != "linear":
            raise DiffLensError(f"the grid is for the linear head, not for {self._head}")
        if not self._online:
            return
        if self.store is not None:
            raise DiffLensError(
                "a store holds features of a frozen backbone and of images without augmentation: leave out "
                "--store, or use a frozen extractor without --augment"
            )
        if self.chosen("normalise", "none") != "none":
            raise DiffLensError(
                "--normalise measures features of a frozen backbone and of images without augmentation: "
                "take --normalise none, or leave out --extractor and --augment"
            )
        if self.grid or self._head == "knn":
            raise DiffLensError(
                "k-NN and the grid read features of a frozen backbone and of images without augmentation: "
                "leave out --extractor and --augment"
            )
