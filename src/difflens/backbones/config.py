"""The configuration of a backbone: its name and the options that loading it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from difflens.choices import ScheduleName

if TYPE_CHECKING:
    import torch

    from difflens.backbones.base import Backbone


class BackboneOptions(Protocol):
    """The options that every command with a backbone has."""

    @property
    def num_head_channels(self) -> int: ...

    @property
    def noise_schedule(self) -> ScheduleName: ...

    @property
    def image_size(self) -> int | None: ...


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

    @classmethod
    def of(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """Return the configuration of the backbone `spec` with a command's options."""
        return cls(spec, options.num_head_channels, options.noise_schedule, options.image_size)

    def load(self, device: "torch.device | str" = "cpu") -> "Backbone":
        """Load the backbone on a device; arguments and errors as in `load_backbone`."""
        from difflens.backbones.load import load_backbone

        return load_backbone(
            self.spec,
            num_head_channels=self.num_head_channels,
            noise_schedule=self.noise_schedule,
            image_size=self.image_size,
            device=device,
        )
