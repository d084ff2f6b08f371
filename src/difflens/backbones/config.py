"""How a backbone is named and loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from difflens.choices import ScheduleName

if TYPE_CHECKING:
    import torch

    from difflens.backbones.base import Backbone


class BackboneOptions(Protocol):
    """What the configuration of every command that loads a backbone has."""

    @property
    def num_head_channels(self) -> int: ...

    @property
    def noise_schedule(self) -> ScheduleName: ...

    @property
    def image_size(self) -> int | None: ...


@dataclass(frozen=True)
class BackboneConfig:
    """What `load_backbone` needs."""

    spec: str
    num_head_channels: int = 64
    noise_schedule: ScheduleName = "linear"
    image_size: int | None = None

    @classmethod
    def of(cls, options: BackboneOptions, spec: str) -> "BackboneConfig":
        """The backbone `spec` with what a command's configuration says of backbones."""
        return cls(spec, options.num_head_channels, options.noise_schedule, options.image_size)

    def load(self, device: "torch.device | str" = "cpu") -> "Backbone":
        from difflens.backbones.load import load_backbone

        return load_backbone(
            self.spec, num_head_channels=self.num_head_channels, noise_schedule=self.noise_schedule,
            image_size=self.image_size, device=device,
        )  # fmt: skip
