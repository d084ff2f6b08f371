"""The configuration of a backbone: its name and the options that loading it takes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from difflens.choices import FamilyName, ScheduleName, TapName

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
    return Path(spec.removeprefix("random:")).expanduser().is_file()


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

    def load(self, device: "torch.device | str" = "cpu") -> "Backbone":
        """Load the backbone on a device; arguments and errors as in `load_backbone`."""
        from difflens.backbones.load import load_backbone

        values = {name: value for name, value in asdict(self).items() if name != "spec"}
        return load_backbone(self.spec, **values, device=device)
