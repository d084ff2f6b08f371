"""The configuration of a backbone: its name and the options that loading it takes."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from difflens.choices import FamilyName, ScheduleName, TapName
from difflens.errors import expanded

if TYPE_CHECKING:
    import torch

    from difflens.backbones.base import Backbone


BACKBONE_OPTIONS = (
    "num_head_channels",
    "noise_schedule",
    "image_size",
    "condition",
    "tap",
    "autoencoder",
    "family",
)
"""The options of a command that are arguments of `load_backbone`."""


class BackboneOptions(Protocol):
    """The options that every command with a backbone has."""

    @property
    def num_head_channels(self) -> int: ...

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


def is_checkpoint(spec: str) -> bool:
    """Return whether `spec` names a file, as OpenAI's checkpoints are, or the same network untrained."""
    return expanded(spec.removeprefix("random:")).is_file()


CONDITION_FILE = "condition.safetensors"
"""The embedding of the empty prompt beside a run or a model, so that no text encoder runs again."""


@dataclass(frozen=True)
class BackboneConfig:
    """The arguments of `load_backbone`, which explains them."""

    spec: str
    num_head_channels: int = 64
    noise_schedule: ScheduleName = "linear"
    image_size: int | None = None
    condition: str | None = None
    tap: TapName | None = None
    autoencoder: str | None = None
    family: FamilyName | None = None
    condition_file: str | None = None

    @classmethod
    def of(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """Return the configuration of the backbone `spec` with a command's options."""
        values = {name: getattr(options, name) for name in BACKBONE_OPTIONS}
        return cls(spec, **values)

    def stored(self) -> dict[str, Any]:
        """Return the arguments as plain values for a file.

        Options of conditional networks and of transformers are left out where they are not given, as in
        files of version 0.1, and `condition_file` always: its owner knows where the file is.
        """
        always = ("spec", "num_head_channels", "noise_schedule", "image_size")
        values = asdict(self)
        del values["condition_file"]
        return {name: value for name, value in values.items() if name in always or value is not None}

    def load(self, device: "torch.device | str" = "cpu") -> "Backbone":
        """Load the backbone on a device; arguments and errors as in `load_backbone`."""
        from difflens.backbones.load import load_backbone

        values = {name: value for name, value in asdict(self).items() if name != "spec"}
        return load_backbone(self.spec, **values, device=device)
