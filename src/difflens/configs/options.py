"""Option groups that commands compose, a range beside each number, and what every command does with its options.

    resolve    fills in what was left out: the preset's value, or else what suits the other options
    validate   refuses what is out of range, has no effect, or does not go together
    recorded   says which options make a run the same run

A group is a dataclass of keyword arguments. A command's configuration inherits the groups that it needs, so flags stay
flat and each option is declared once.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from difflens.choices import (
    ExtractorName,
    OnBadImage,
    OptimizerName,
    Precision,
    ScheduleName,
)
from difflens.errors import DiffLensError, listing, require
from difflens.extractors.config import options_without_effect

T = TypeVar("T")
C = TypeVar("C", bound="Options")


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number, or of each number in a tuple. It must be finite."""

    least: float
    most: float | None = None


@dataclass(frozen=True)
class _MayChange:
    """Marks an option that may differ between a run and its continuation."""


MAY_CHANGE = _MayChange()

Natural = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**31)]
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every command's configuration."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Recipes of the command, by name."""
    POSITIONAL: ClassVar[tuple[str, ...]] = ()
    """Options that are given without a flag."""
    HAS_DIRECTORY: ClassVar[bool] = True
    """Does the command need --out?"""

    @property
    def command(self) -> str:
        """The command's name: `ProbeConfig` configures probe."""
        return type(self).__name__.removesuffix("Config").lower()

    @property
    def memory_advice(self) -> str:
        """Options that help where the GPU has too little memory."""
        return "lower --batch-size"

    def expanded(self) -> Self:
        """The configuration with shorthands replaced by the options that they stand for."""
        return self

    def chosen(self, name: str, default: Any = None) -> Any:
        """The option, or else the preset's value of it, or else `default`."""
        value = getattr(self, name)
        if value is not None:
            return value
        return self.PRESETS.get(getattr(self, "preset", None) or "", {}).get(name, default)

    def recipe(self) -> Mapping[str, Any]:
        """Values of options that were left at None."""
        return {}

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        """Options that change nothing beside the others: the reason, and their names."""
        yield from ()

    def check(self) -> None:
        """Raise DiffLensError if options do not go together."""


def resolve(config: C) -> C:
    """Fill in every option that was left at None and has a value in the recipe.

    Raises:
        DiffLensError: as `validate`.
    """
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
    """Check the options as they were given.

    Raises:
        DiffLensError: a number is out of its range, a word is not among the choices, there is no such preset, or an
            option has no effect.
    """
    for name, hint in _hints(type(config)).items():
        _check_value(name, getattr(config, name), hint)
    preset = getattr(config, "preset", None)
    if preset is not None and preset not in config.PRESETS:
        raise DiffLensError(f"no preset {preset!r}; there are {listing(list(config.PRESETS))}")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for reason, names in config.without_effect():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != defaults[name]]
        if given:
            raise DiffLensError(f"{reason}: leave out {listing(given)}")


def recorded(config: Options) -> dict[str, Any]:
    """The options that make a run the same run, as plain values: all but those that may change on --resume."""
    hints = _hints(type(config))
    return {
        name: _plain(value)
        for name, value in dataclasses.asdict(config).items()
        if MAY_CHANGE not in _metadata(hints[name])
    }


def changeable(kind: type[Options]) -> set[str]:
    """Names of the options that may differ between a run and its continuation."""
    return {name for name, hint in _hints(kind).items() if MAY_CHANGE in _metadata(hint)}


def given(value: T | None) -> T:
    """An option that `resolve` has filled in."""
    assert value is not None, "the recipe fills this in"
    return value


def _check_value(name: str, value: object, hint: Any) -> None:
    if value is None:
        return
    if isinstance(value, tuple):
        for number, each in enumerate(value):
            _check_value(name, each, _element(hint, number))
        return
    choices = [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
    if choices and value not in choices:
        raise DiffLensError(
            f"no {name.replace('_', '-')} {value!r}; there are {listing([each for each in choices if each])}"
        )
    for range_ in (each for each in _metadata(hint) if isinstance(each, Range)):
        assert isinstance(value, int | float)
        require(**{f"--{name}": (value, range_.least, range_.most)})


def _parts(hint: Any) -> Iterator[Any]:
    """The hint, and the members of its unions, without their annotations."""
    if get_origin(hint) is Annotated:
        hint = hint.__origin__
    yield hint
    if get_origin(hint) not in (tuple, Literal):
        for part in get_args(hint):
            yield from _parts(part)


def _metadata(hint: Any) -> list[object]:
    """What annotates the hint or a member of its unions."""
    if get_origin(hint) is Annotated:
        return [*hint.__metadata__, *_metadata(hint.__origin__)]
    if get_origin(hint) in (tuple, Literal):
        return []
    return [each for part in get_args(hint) for each in _metadata(part)]


def _element(hint: Any, number: int) -> Any:
    """The hint of one element of a tuple."""
    kinds = next(get_args(part) for part in _parts(hint) if get_origin(part) is tuple)
    return kinds[0] if kinds[-1] is Ellipsis else kinds[number]


def _hints(kind: type[Options]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: object) -> object:
    """Paths as text, as YAML and JSON take them."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """What is drawn at random."""

    seed: Seed = 0
    """Seed of everything that is drawn: weights, order, augmentation, noise, choices of images."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(SeedOptions):
    """A run directory, and the device."""

    out: Annotated[Path, MAY_CHANGE]
    """Run directory."""
    device: Annotated[Literal["cpu"] | None, MAY_CHANGE] = None
    """cpu keeps the run off the GPU."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(RunOptions):
    """A run that can be continued."""

    resume: Annotated[bool, MAY_CHANGE] = False
    """Continue the run in --out."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(Options):
    """How images are read."""

    on_bad_image: Annotated[OnBadImage, MAY_CHANGE] = "error"
    """skip leaves out images that cannot be read, and lists them."""
    workers: Annotated[Natural | None, MAY_CHANGE] = None
    """Processes that decode images. None: chosen by the machine and the number of images."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """Options of an OpenAI checkpoint, which its weights do not show, and the size of the images."""

    num_head_channels: Count = 64
    """Channels per attention head of an OpenAI checkpoint."""
    noise_schedule: ScheduleName = "linear"
    """Noise schedule of an OpenAI checkpoint."""
    image_size: Count | None = None
    """Side of the images that the backbone takes, in pixels. None: the side that it was trained on."""


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(CheckpointOptions):
    """The backbone that is read."""

    backbone: str = "fashion"
    """fashion, a diffusers folder, a folder that pretrain wrote, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or
    random: before any of them for the same network untrained."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(Options):
    """The backbone's arithmetic."""

    precision: Precision = "float32"
    """Floating-point format of the frozen backbone. Heads are always trained in float32."""


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(Options):
    """The places that are read: every block at every noise step."""

    blocks: tuple[int, ...] | None = None
    """Blocks to read. None: chosen by the backbone and the command."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps at which the blocks are read. None: chosen by the backbone and the command."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Options):
    """Memory for cached features."""

    cache_gigabytes: Annotated[NonNegative, MAY_CHANGE] = 4.0
    """Features beyond this size lie in a file in the run directory, not in memory."""


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions(PrecisionOptions, PlaceOptions):
    """The extractor: the frozen backbone, DifFeed's second pass, or a backbone that is trained too."""

    extractor: ExtractorName | None = None
    """frozen, feedback (DifFeed: decoder maps return to the encoder), or finetuned. None: the preset's, or frozen."""
    feedback_blocks: tuple[int, ...] | None = None
    """feedback: decoder blocks that are sent back. None: chosen by the backbone."""
    checkpoint_activations: Annotated[bool, MAY_CHANGE] = False
    """feedback: compute the second pass again in the backward pass. It is slower and takes less memory."""
    from_block: int = 1
    """finetuned: the first block that is trained."""

    def without_effect(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().without_effect()
        yield from options_without_effect(self.chosen("extractor", "frozen"))


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(Options):
    """How a head is trained."""

    batch_size: Count | None = None
    """Images per step, over all processes. None: the preset's, or 128, or 8 for dense tasks."""
    optimizer: OptimizerName | None = None
    """adamw or sgd. None: the preset's, or adamw."""
    learning_rate: NonNegative | None = None
    """Peak learning rate. None: the preset's, or the head's."""
    weight_decay: NonNegative | None = None
    """Weight decay. None: the preset's, or 0.05, or 0.01 for dense tasks."""
    warmup_steps: Natural | None = None
    """Steps over which the learning rate rises linearly. None: half an epoch, or 100 steps (at most a tenth) for dense
    tasks."""
    fresh_noise: bool = True
    """New noise in every epoch or iteration; --no-fresh-noise keeps the noise of the evaluation."""
    layer_decay: Share | None = None
    """finetuned: factor from each block's learning rate to that of the block before it (Clark et al., 2020). None: 0.85."""
