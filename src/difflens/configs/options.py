"""Option groups that commands compose, the range of each number, and the functions that check options.

    resolve        fills in options that are None: with the preset's value, or else the recipe's
    check_values   refuses options of another type, out of range, or not among the choices
    validate       refuses options that have no effect, and presets that do not exist
    recorded       returns the options that identify a run, which --resume compares

A group is a dataclass of keyword arguments. A command's configuration inherits the groups that it needs, so
flags stay flat and each option is declared once.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from difflens.choices import (
    AttentionOrder,
    ExtractorName,
    FamilyName,
    MeasuredPrecision,
    OnBadImage,
    OptimizerName,
    Precision,
    ScheduleName,
    TapName,
    TrackerName,
    WeightsName,
)
from difflens.errors import DiffLensError, did_you_mean, expanded, listing, require
from difflens.extractors.config import options_without_effect

# the ranges are part of the language of options
from difflens.ranges import Range as Range
from difflens.ranges import Seed as Seed
from difflens.ranges import Share as Share
from difflens.ranges import Width as Width

T = TypeVar("T")
C = TypeVar("C", bound="Options")


_WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    bool: "True or False",
}


@dataclass(frozen=True)
class _MayChange:
    """Marks an option that may differ between a run and its continuation."""


MAY_CHANGE = _MayChange()
"""The mark of options that --resume does not compare."""

LIMIT_KEEPS = "as many of each class"
"""What a limit keeps of the images, for the records of runs; version 0.1 kept the first."""

Natural = Annotated[int, Range(0, 10**9)]
Count = Annotated[int, Range(1, 10**9)]
Times = Annotated[int, Range(1, 10**4)]
Epochs = Annotated[int, Range(1, 10**6)]
NonNegative = Annotated[float, Range(0, 10**6)]
Batch = Annotated[int, Range(1, 10**6)]
Side = Annotated[int, Range(1, 2**14)]
Pool = Annotated[int, Range(0, 2**14)]
Workers = Annotated[int, Range(0, 1024)]
Block = Annotated[int, Range(1, 10**4)]
NoiseStep = Annotated[int | float, Range(0, 10**6)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the configuration of a command.

    In Python, a string may stand for a path and a path for a string; a list, an array
    of NumPy or PyTorch, or one value for a tuple.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The recipes of the command, by name."""
    POSITIONAL: ClassVar[tuple[str, ...]] = ()
    """The options without a flag."""
    HAS_DIRECTORY: ClassVar[bool] = True
    """True if the command needs --out."""

    LIMITS: ClassVar[tuple[str, ...]] = ()
    """The options that limit the number of images, of which `data.labels.limited` draws."""

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, _converted(getattr(self, name), hint))

    @property
    def command(self) -> str:
        """The name of the command: `ProbeConfig` gives "probe"."""
        return type(self).__name__.removesuffix("Config").lower()

    @property
    def function(self) -> str:
        """The name of the command's function in the package."""
        return self.command

    @property
    def memory_advice(self) -> str:
        """The advice of the error message if the GPU has too little memory."""
        if hasattr(self, "batch_size"):
            return "lower --batch-size"
        return "choose a GPU with more of it, or keep the run off the GPU with --device cpu"

    def expanded(self) -> Self:
        """Return the configuration with shorthands replaced by the options that they stand for."""
        return self

    def chosen(self, name: str, default: Any = None) -> Any:
        """Return the value of the option `name`, or else the preset's value, or else `default`."""
        value = getattr(self, name)
        if value is not None:
            return value
        return self.PRESETS.get(getattr(self, "preset", None) or "", {}).get(name, default)

    def recipe(self) -> Mapping[str, Any]:
        """Return the values of options that are None, by name."""
        return {}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        """Yield the options that have no effect with the others: the reason, and their names."""
        yield from ()

    def check(self) -> None:
        """Raise DiffLensError if options contradict each other."""


def resolve(config: C) -> C:
    """Fill in all options that are None and have a value in the recipe.

    Raises:
        DiffLensError: for the reasons of `check_values` and `validate`, options contradict each other, or it
            is a dry run.
    """
    if getattr(config, "dry_run", False):
        raise DiffLensError("dry_run is for `difflens.plan`, which --dry-run calls")
    check_values(config)
    config = config.expanded()
    validate(config)
    idle = {name for _, names in config.without_effect() for name in names}
    values = {
        name: value
        for name, value in config.recipe().items()
        if name not in idle and getattr(config, name, value) is None
    }
    full = dataclasses.replace(config, **values)
    full.check()
    return full


def validate(config: Options) -> None:
    """Check the options as the user gave them, each of which has passed `check_values`.

    Raises:
        DiffLensError: there is no such preset, or an option has no effect.
    """
    preset = getattr(config, "preset", None)
    if preset is not None and preset not in config.PRESETS:
        hint = did_you_mean(preset, config.PRESETS)
        raise DiffLensError(f"no preset {preset!r}; {hint}there are {listing(list(config.PRESETS))}")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for reason, names in config.without_effect():
        given = {name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]}
        if given:
            # a flag that is on by default is given as --no-FLAG
            flags = [f"--{'no_' * (value is False)}{name}".replace("_", "-") for name, value in given.items()]
            raise DiffLensError(f"{reason}: leave out {listing(flags)}")


def recorded(config: Options) -> dict[str, Any]:
    """Return the options that identify a run, as plain values: all but those that --resume may change."""
    hints = hints_of(type(config))
    options = {
        name: _plain(value)
        for name, value in dataclasses.asdict(config).items()
        if MAY_CHANGE not in _metadata(hints[name])
    }
    limits = any(options[name] is not None for name in config.LIMITS)
    return {**options, "limit_keeps": LIMIT_KEEPS} if limits else options


def changeable(kind: type[Options]) -> set[str]:
    """Return the names of the options that may differ between a run and its continuation."""
    return {name for name, hint in hints_of(kind).items() if MAY_CHANGE in _metadata(hint)}


def changeable_values(config: Options) -> dict[str, Any]:
    """Return the options that --resume may change, as plain values, but for those of the run's own place."""
    names = changeable(type(config)) - {"out", "resume", "dry_run", "device"}
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items() if name in names}


def given(value: T | None) -> T:
    """Return the value of an option that `resolve` has filled in, so that it is not None."""
    assert value is not None, "the recipe fills this in"
    return value


def check_values(config: Any) -> None:
    """Check each field of a configuration by itself, as the user gave it.

    Raises:
        DiffLensError: it is of another type, out of its range, or not among the choices.
    """
    for name, hint in hints_of(type(config)).items():
        _check_value(name, getattr(config, name), hint)


def _check_value(name: str, value: object, hint: Any) -> None:
    """Raise DiffLensError if a value is not of the type, among the choices or in the ranges of its hint."""
    kinds = [get_origin(part) or part for part in _parts(hint)]
    if value is None and type(None) in kinds:
        return
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            _check_value(name, item, _element(hint, number))
        return
    choices = [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
    if choices and value not in choices:
        known = [str(choice) for choice in choices if choice]
        meant = did_you_mean(str(value), known, 0.7)
        raise DiffLensError(f"no {name.replace('_', '-')} {value!r}; {meant}there are {listing(known)}")
    ranges = [mark for mark in _metadata(hint) if isinstance(mark, Range)]
    fitting = [kind for kind in kinds if kind in _WORDS]
    if fitting and not any(_fits(value, kind) for kind in fitting):
        allowed = " or ".join(_WORDS[kind] for kind in fitting if not (kind is int and float in fitting))
        span = "".join(f" {range_}" for range_ in ranges)
        raise DiffLensError(
            f"--{name.replace('_', '-')} is {listing([repr(value)])}; it must be {allowed}{span}"
        )
    if isinstance(value, int | float):
        for range_ in ranges:
            require(**{f"--{name}": (value, range_.least, range_.most)})


def _fits(value: object, kind: type) -> bool:
    """Return True for a value of the type; a whole number is a number, too, and True is none."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def _converted(value: Any, hint: Any) -> Any:
    """Return a value with strings as paths, paths as strings, and lists and single values as tuples, where
    its type hint says so, and with numbers as Python's."""
    kinds = [get_origin(part) or part for part in _parts(hint)]
    if hasattr(value, "tolist"):  # a number, or an array, of NumPy or PyTorch
        value = value.tolist()
    if tuple in kinds and isinstance(value, list | tuple | str | Path | int | float):
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(_converted(item, _element(hint, number)) for number, item in enumerate(items))
    if isinstance(value, str) and Path in kinds:
        return expanded(value)
    return str(value) if isinstance(value, Path) and str in kinds and Path not in kinds else value


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type hint and the members of its unions, without `Annotated`."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    yield hint
    if get_origin(hint) not in (tuple, Literal):
        for part in get_args(hint):
            yield from _parts(part)


def _metadata(hint: Any) -> list[object]:
    """Return the metadata of `Annotated` in a type hint and in the members of its unions."""
    if get_origin(hint) is Annotated:
        return [*hint.__metadata__, *_metadata(hint.__origin__)]
    if get_origin(hint) in (tuple, Literal):
        return []
    return [mark for part in get_args(hint) for mark in _metadata(part)]


def _element(hint: Any, number: int) -> Any:
    """Return the type hint of one element of a tuple."""
    kinds = next(get_args(part) for part in _parts(hint) if get_origin(part) is tuple)
    return kinds[0] if kinds[-1] is Ellipsis else kinds[min(number, len(kinds) - 1)]


def hints_of(kind: type) -> dict[str, Any]:
    """Return the type hints of a configuration's options, by name."""
    return _hints(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: object) -> object:
    """Return a value that YAML and JSON can hold: a list for a tuple, text for a path."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """The seed of a run."""

    seed: Seed = 0
    """Seed of all that is random: weights, order, augmentation, noise, choices of images."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(SeedOptions):
    """A run directory, and the device."""

    out: Annotated[Path, MAY_CHANGE]
    """Run directory, which is created; it must be empty or new, unless --resume continues the run in it."""
    device: Annotated[Literal["cpu"] | None, MAY_CHANGE] = None
    """cpu keeps the run off the GPU. None: a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(RunOptions):
    """A run that can be continued."""

    resume: Annotated[bool, MAY_CHANGE] = False
    """Continue the run in --out, with the same options."""


@dataclass(frozen=True, kw_only=True)
class LogOptions(Options):
    """The trackers of a training."""

    log: Annotated[tuple[TrackerName, ...], MAY_CHANGE] = ()
    """Trackers that show the curves of the training: tensorboard, wandb, mlflow, aim, dvclive, trackio,
    swanlab. The library of each must be installed."""

    def check(self) -> None:
        super().check()
        for name in self.log:
            if find_spec(name) is None:
                package = '"difflens[tensorboard]"' if name == "tensorboard" else name
                raise DiffLensError(f"--log {name}: its library is missing; pip install {package}")


@dataclass(frozen=True, kw_only=True)
class DryRunOptions(Options):
    """A command that can say what it would run."""

    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Print what would run: images, steps, places, memory, and hours on one H100 as an estimate. Nothing is
    downloaded or written, and no weights are read."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(Options):
    """The reading of images."""

    on_bad_image: Annotated[OnBadImage, MAY_CHANGE] = "error"
    """error stops at the first image that cannot be read; skip leaves such images out and lists them."""
    workers: Annotated[Workers | None, MAY_CHANGE] = None
    """Processes that decode images. None: chosen by the machine and the number of images."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The split of the data."""

    val_fraction: Annotated[float, Range(0.0001, 0.9999)] | None = None
    """For folders CLASS/IMAGE and CSV files without a split: the share of each class, 0 to 1, that is held
    out for testing, the same images for all commands and seeds. None: the data has a split."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """The settings of an OpenAI checkpoint that its weights do not show, and the size of the images."""

    num_head_channels: Width = 64
    """Channels per attention head of an OpenAI checkpoint."""
    num_heads: Count | None = None
    """Attention heads of an OpenAI checkpoint that has the same number at each level. None: heads of
    --num-head-channels channels."""
    attention_order: AttentionOrder | None = None
    """legacy or new: the order of query, key and value in an OpenAI checkpoint. None: legacy, as released."""
    noise_schedule: ScheduleName = "linear"
    """Noise schedule of an OpenAI checkpoint."""
    image_size: Side | None = None
    """Side of the images that the backbone takes, in pixels. None: the side that it was trained on."""
    condition: str | None = None
    """Condition of a conditional network: null (the null class, or the empty prompt), mean, zero or a class.
    None: null where there is one, else mean, else zero."""
    tap: TapName | None = None
    """How the tokens of a transformer are read: raw, norm (LayerNorm), or adaln (with the norm, shift and
    scale of the next block). None: raw."""
    autoencoder: str | None = None
    """Folder of the autoencoder of a network that reads latents, where its own folder has none."""
    weights: WeightsName | None = None
    """raw or ema, for a training checkpoint that holds both. None: ema."""
    family: FamilyName | None = None
    """dit, sit or repa: what a .pt checkpoint in DiT's layout is. Its weights do not show it."""


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(CheckpointOptions):
    """The backbone that is read."""

    backbone: str | None = None
    """fashion or photos, which are bundled; a diffusers folder, a run directory of pretrain or probe, an
    OpenAI checkpoint, a hub id, timm:NAME or pixels; with the prefix random: the same network untrained.
    None: the bundled network for the images' channels."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(Options):
    """The backbone's arithmetic."""

    precision: MeasuredPrecision = "float32"
    """Floating-point format of the frozen backbone: float32, bfloat16 or float16. auto takes two seconds to
    measure whether bfloat16 is faster on this machine. Heads are always trained in float32."""

    @property
    def decided_precision(self) -> Precision:
        """The format; `difflens.opening.with_backbone` has decided it where it was auto."""
        assert self.precision != "auto", "decided when the backbone is"
        return self.precision


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(Options):
    """The places that are read: each block at each noise step."""

    blocks: tuple[Block, ...] | None = None
    """Blocks to read. None: chosen by the backbone and the command."""
    noise_steps: tuple[NoiseStep, ...] | None = None
    """Noise levels at which the blocks are read, in the unit of the backbone's noise process: whole steps,
    sigma, or a time from 0 to 1; `difflens info` says which. None: chosen by the backbone and the command."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Options):
    """Memory for cached features and latents."""

    cache_gigabytes: Annotated[NonNegative, MAY_CHANGE] = 4.0
    """Size in gigabytes beyond which cached features, or latents, are kept in files in the run directory, not
    in memory."""


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions(PrecisionOptions, PlaceOptions):
    """The extractor: the frozen backbone, DifFeed's second pass, or a backbone that is trained too."""

    extractor: ExtractorName | None = None
    """frozen, feedback (DifFeed: decoder maps return to the encoder), or finetuned. None: the preset's, or
    frozen."""
    feedback_blocks: tuple[Block, ...] | None = None
    """feedback: decoder blocks whose maps return to the encoder. None: chosen by the backbone."""
    checkpoint_activations: Annotated[bool, MAY_CHANGE] = False
    """feedback, finetuned: recompute the second pass, or the trained blocks, in the backward pass. It takes
    less memory, and steps are slower."""
    from_block: Block = 1
    """finetuned: the first block that is trained, from 1."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        yield from options_without_effect(self.chosen("extractor", "frozen"))

    def check(self) -> None:
        super().check()
        if self.chosen("extractor", "frozen") == "feedback" and self.precision == "float16":
            raise DiffLensError(
                "feedback is trained through the backbone, where float16 rounds small gradients to 0: choose "
                "--precision bfloat16 or float32"
            )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(Options):
    """The optimiser that trains a head."""

    batch_size: Batch | None = None
    """Images in a step, over all processes. None: the preset's, or 128, or 8 for dense tasks."""
    optimizer: OptimizerName | None = None
    """adamw or sgd. None: the preset's, or adamw."""
    learning_rate: NonNegative | None = None
    """Peak learning rate. None: the preset's, or the head's."""
    weight_decay: NonNegative | None = None
    """Weight decay. None: the preset's, or 0.05, or 0.01 for dense tasks."""
    warmup_steps: Natural | None = None
    """Steps over which the learning rate rises linearly. None: half an epoch, or 100 steps (at most a tenth
    of all) for dense tasks."""
    fresh_noise: bool = True
    """Add new noise in each epoch or iteration. --no-fresh-noise trains with the noise of the evaluation."""
    layer_decay: Share | None = None
    """finetuned: a block's learning rate is that of the next block times this factor (Clark et al., 2020), 0
    to 1. None: 0.85."""
