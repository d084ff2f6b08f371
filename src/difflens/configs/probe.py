"""Options of `difflens probe`."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from difflens import presets
from difflens.choices import (
    Augmentation,
    ExtractorName,
    HeadChoice,
    OnBadImage,
    OptimizerName,
    Precision,
    ScheduleKind,
    ScheduleName,
)
from difflens.configs.train import TrainConfig
from difflens.errors import DiffLensError, listing, require


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train a head on frozen diffusion features and evaluate it once on the test split.

    A field left at None takes the preset's value, or else what fits head and backbone.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them."""
    data: str | None = None
    """fashion, fashion-full, aircraft, cars, cub, dogs, flowers, nabirds, idx:FOLDER, folder:PATH (or the path alone),
    torchvision:NAME, hf:ID. None: the preset's, or fashion."""
    store: Path | None = None
    """Read the features from a store of `difflens extract` instead of running the backbone."""
    preset: str | None = None
    """A recipe of `difflens.presets.PROBE`, such as paper-attention."""
    head: HeadChoice | None = None
    """diffeed is the attention head on the feedback extractor; knn trains nothing. None: the preset's, or attention."""
    extractor: ExtractorName | None = None
    """frozen, feedback (DifFeed), or finetuned. None: frozen, but feedback for diffeed."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read; None: those that suit the head, or what the store holds."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at; None: likewise."""
    feedback_blocks: tuple[int, ...] | None = None
    """Decoder blocks that DifFeed sends back."""
    from_block: int = 1
    """First block to train with the finetuned extractor."""
    draws: int = 1
    """Average the maps over so many noises."""
    pool: int | None = None
    """Side that larger maps are pooled to: 2 for linear, MLP and knn, 16 for the others; 0: no pooling."""
    width: int | None = None
    """Width of the head."""
    depth: int | None = None
    """Depth of the head."""
    dropout: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step, over all processes. None: 128."""
    optimizer: OptimizerName | None = None
    """None: adamw."""
    learning_rate: float | None = None
    grid: bool = False
    """linear: try a grid of learning rates and weight decays on a fifth of the training images, keep the best."""
    weight_decay: float | None = None
    lr_schedule: ScheduleKind | None = None
    """Learning rate: cosine to zero, x0.1 every `step_epochs`, or constant. None: cosine."""
    step_epochs: int | None = None
    warmup_epochs: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    """Blend pairs of inputs and labels, the share drawn from Beta(mixup, mixup). None: the head's."""
    layer_decay: float | None = None
    """finetuned: each block learns at so many times the rate of the next one. None: 0.85."""
    augment: Augmentation | None = None
    """none; flip; crop: the paper's random crop and flip. With none, a frozen extractor runs once. None: the head's, else
    none."""
    fresh_noise: bool = True
    """Draw new noise in every epoch where features are not cached."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic; heads are always float32."""
    checkpoint_activations: bool = False
    """feedback: compute the second pass again in the backward pass: slower, in less memory."""
    cache_gigabytes: float = 4.0
    """Features beyond this lie in a file in the run directory while training, not in memory."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    limit: int | None = None
    """Train on the first so many images only."""
    label_fraction: float | None = None
    """Train on so large a part of each class, chosen by the seed, the same for every head."""
    label_list: Path | None = None
    """Train on the images that this file names, one a line."""
    seed: int = 0
    """Of the head's weights, the order of the images, the augmentation, the noise and the choice of labels."""
    seeds: int = 1
    """Repeat with so many seeds, from `seed` up, and give mean and standard deviation."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read, and lists them in metrics.json."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Go on with the run in `out`."""

    def recipe(self) -> dict[str, Any]:
        """Values for fields left at None: the preset's, or else the head's defaults."""
        if self.preset is not None and self.preset not in presets.PROBE:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets.PROBE))}")
        preset = presets.PROBE.get(self.preset or "", {})
        if self.head is not None and self.head != preset.get("head", self.head):
            raise DiffLensError(f"the preset {self.preset} is for the head {preset['head']}, not {self.head}")
        head = self.head or preset.get("head", "attention")
        finetuning = presets.FINETUNING if self.extractor == "finetuned" else {}
        return {"data": "fashion", **presets.HEADS[head], **finetuning, **preset, "head": head}

    def resolved(self) -> "ProbeConfig":
        """With every field that a recipe or a general default knows filled in."""
        recipe = self.recipe()
        self.check()
        unused = self._unused(recipe["head"])
        general = {field.name: field.default for field in fields(TrainConfig)}
        filled: dict[str, Any] = {
            field.name: recipe.get(field.name, general.get(field.name))
            for field in fields(self)
            if getattr(self, field.name) is None and field.name not in unused
        }
        if self.epochs is None and "epochs" not in presets.PROBE.get(self.preset or "", {}):
            filled["epochs"] = None  # they depend on the number of images
        return replace(self, **filled)

    def _unused(self, head: HeadChoice) -> tuple[str, ...]:
        """Options that mean nothing to the head or the grid; DiffLensError if one is given."""
        unused: tuple[str, ...] = ()
        why = ""
        if head == "knn":
            unused, why = ("width", "depth", "dropout", *_TRAINING), "k-NN trains nothing"
        elif self.grid:
            unused, why = ("learning_rate", "weight_decay"), "the grid tries rates and decays of its own"
        given = [f"--{name.replace('_', '-')}" for name in unused if getattr(self, name) is not None]
        if given:
            raise DiffLensError(f"{why}: leave out {listing(given)}")
        return unused

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            pool=(self.pool, 0, None), width=(self.width, 1, None), depth=(self.depth, 1, None),
            dropout=(self.dropout, 0, 0.99), epochs=(self.epochs, 1, None), batch_size=(self.batch_size, 1, None),
            learning_rate=(self.learning_rate, 0, None), weight_decay=(self.weight_decay, 0, None),
            step_epochs=(self.step_epochs, 1, None), warmup_epochs=(self.warmup_epochs, 0, None),
            label_smoothing=(self.label_smoothing, 0, 1), mixup=(self.mixup, 0, None),
            cache_gigabytes=(self.cache_gigabytes, 0, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None), limit=(self.limit, 1, None), workers=(self.workers, 0, None),
            seed=(self.seed, 0, 2**31), seeds=(self.seeds, 1, None), draws=(self.draws, 1, None),
            layer_decay=(self.layer_decay, 0, 1),
        )  # fmt: skip
        if self.label_fraction is not None and self.label_list is not None:
            raise DiffLensError("--label-fraction and --label-list both choose the labels: give one of them")

    def check_resolved(self) -> None:
        """DiffLensError for options of a resolved configuration that do not go together."""
        online = (
            self.extractor in ("feedback", "finetuned") or self.head == "diffeed" or self.augment != "none"
        )
        if self.store is not None and online:
            raise DiffLensError("a store holds frozen features of unchanged images: leave out --store, or use a frozen "
                                "extractor without --augment")  # fmt: skip
        if self.grid and self.head != "linear":
            raise DiffLensError(f"the grid is for the linear head, not for {self.head}")
        if (self.grid or self.head == "knn") and online:
            raise DiffLensError("k-NN and the grid read frozen features of unchanged images: leave out --extractor and "
                                "--augment")  # fmt: skip

    def training(self) -> TrainConfig:
        """The part of a resolved configuration that `fit` takes."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{name: value for name, value in values.items() if value is not None})


# How a head is trained, and so nothing to one that is not.
_TRAINING = (
    "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "lr_schedule", "step_epochs",
    "warmup_epochs", "label_smoothing", "mixup", "layer_decay",
)  # fmt: skip
