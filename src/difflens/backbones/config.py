"""The configuration of a backbone: its name and the options that loading it takes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from difflens.choices import AttentionOrder, FamilyName, ScheduleName, TapName, WeightsName
from difflens.errors import expanded
from difflens.ranges import Pixels, Width

if TYPE_CHECKING:
    import torch

    from difflens.backbones.base import Backbone


FILE_OPTIONS = ("num_head_channels", "num_heads", "attention_order", "noise_schedule", "family")
"""The options of a checkpoint file, whose weights do not show them."""

BACKBONE_OPTIONS = (*FILE_OPTIONS, "image_size", "condition", "tap", "autoencoder", "weights")
"""The options of a command that are arguments of `load_backbone`."""


class BackboneOptions(Protocol):
    """The options that every command with a backbone has."""

    @property
    def num_head_channels(self) -> int: ...

    @property
    def num_heads(self) -> int | None: ...

    @property
    def attention_order(self) -> AttentionOrder | None: ...

    @property
    def noise_schedule(self) -> ScheduleName: ...

    @property
    def image_size(self) -> int | None: ...

    @property
    def condition(self) -> str | None: ...

    @property
    def tap(self) -> TapName | None: ...

    @property
    def autoencoder(self) -> str | None: ...

    @property
    def family(self) -> FamilyName | None: ...

    @property
    def weights(self) -> WeightsName | None: ...


def names_files(spec: str) -> bool:
    """Return whether `spec` names a network in files or on the hub, or the same network untrained."""
    name = spec.removeprefix("random:")
    return not name.startswith("timm:") and ("/" in name or expanded(name).exists())


def is_checkpoint(spec: str) -> bool:
    """Return whether `spec` names a file, as OpenAI's checkpoints are, or the same network untrained."""
    return expanded(spec.removeprefix("random:")).is_file()


CONDITION_FILE = "condition.safetensors"
"""The embedding of the empty prompt beside a run or a model, so that no text encoder runs again."""


@dataclass(frozen=True)
class BackboneConfig:
    """The arguments of `load_backbone`, which explains them."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    spec: str
    num_head_channels: Width = 64
    noise_schedule: ScheduleName = "linear"
    image_size: Pixels | None = None
    condition: str | None = None
    tap: TapName | None = None
    autoencoder: str | None = None
    family: FamilyName | None = None
    weights: WeightsName | None = None
    num_heads: Width | None = None
    attention_order: AttentionOrder | None = None
    condition_file: str | None = None

    @classmethod
    def of(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """Return the configuration of the backbone `spec` with a command's options."""
        values = {name: getattr(options, name) for name in BACKBONE_OPTIONS}
        return cls(spec, **values)

    @classmethod
    def shared(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """Return the configuration of one of a command's several backbones, with the options that it reads.

        A checkpoint file reads all, a network in a folder or on the hub all but those of a checkpoint file,
        and any other backbone the side of the images alone.
        """
        asked = cls.of(options, spec)
        if is_checkpoint(spec):
            return asked
        unread = FILE_OPTIONS if names_files(spec) else set(BACKBONE_OPTIONS) - {"image_size"}
        usual = cls(spec)
        return replace(asked, **{name: getattr(usual, name) for name in unread})

    def stored(self) -> dict[str, Any]:
        """Return the arguments as plain values for a file.

        Options that version 0.1 did not have are left out where they are not given, and `condition_file`
        always: its owner knows where the file is.
        """
        always = ("spec", "num_head_channels", "noise_schedule", "image_size")
        usual = asdict(BackboneConfig(self.spec))
        values = {**asdict(self), "condition_file": None}
        return {name: value for name, value in values.items() if name in always or value != usual[name]}

    def load(self, device: "torch.device | str" = "cpu") -> "Backbone":
        """Load the backbone on a device; arguments and errors as in `load_backbone`.

        Inside `read_once`, files are read at the first call, and each call returns a copy of its own.
        """
        loaded = _LOADED.get()
        if loaded is None:
            return self._read(device)
        if self not in loaded:
            loaded[self] = self._read("cpu")
        return copy.deepcopy(loaded[self]).to(device)

    def _read(self, device: "torch.device | str") -> "Backbone":
        from difflens.backbones.load import load_backbone

        values = {name: value for name, value in asdict(self).items() if name != "spec"}
        return load_backbone(self.spec, **values, device=device)


_LOADED: ContextVar[dict[BackboneConfig, "Backbone"] | None] = ContextVar("loaded", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Within this context, read the files of each backbone once and keep its weights in main memory."""
    token = _LOADED.set({})
    try:
        yield
    finally:
        _LOADED.reset(token)
