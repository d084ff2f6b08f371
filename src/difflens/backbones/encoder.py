"""Encoders that other methods than diffusion have pre-trained here: timm networks in a folder of their own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difflens.backbones.timm import TimmBackbone
from difflens.errors import DiffLensError
from difflens.version import __version__

TASK = "pretraining"
"""What `task` in config.json says, as `model.SavedModel` says what its models are for."""


@dataclass(frozen=True)
class EncoderConfig:
    """A timm network for small images.

    Attributes:
        architecture: timm's name of it.
        arguments: what it is made with, beyond the images' shape.
        channels, side: of the images, which it takes in [-1, 1].
    """

    architecture: str
    arguments: Mapping[str, Any]
    channels: int
    side: int

    def build(self) -> Any:
        """The network without a classifier, its weights drawn from torch's generator.

        A ResNet keeps the resolution up to its second stage, as is usual for small images: its first convolution has
        stride 1, and there is no pooling after it.

        Raises:
            DiffLensError: timm is not installed.
        """
        try:
            import timm
        except ImportError as error:
            raise DiffLensError('encoders need timm: pip install "difflens[compare]"') from error
        half = (0.5,) * self.channels
        images = {"input_size": (self.channels, self.side, self.side), "mean": half, "std": half}
        network: Any = timm.create_model(
            self.architecture, num_classes=0, in_chans=self.channels, pretrained_cfg_overlay=images,
            **self.arguments,
        )  # fmt: skip
        if hasattr(network, "maxpool"):
            network.conv1[0].stride = (1, 1)
            network.maxpool = nn.Identity()
        return network


class EncoderBackbone(TimmBackbone):
    """A frozen encoder that `difflens pretrain` has trained.

    Args:
        network: as `config` builds it.
        method: what it was trained by.
        image_size: overrides the side of the images that it was trained on, in pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        config: EncoderConfig,
        method: str,
        spec: str = "pre-trained",
        image_size: int | None = None,
    ):
        super().__init__(network, spec, image_size or config.side)
        self.config, self.method = config, method

    @classmethod
    def from_description(cls, description: dict[str, Any], spec: str, image_size: int | None) -> Self:
        """From what `describe` gave, with weights drawn from torch's generator."""
        config = EncoderConfig(**description["encoder"])
        return cls(config.build(), config, description["method"], spec, image_size)

    def describe(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "difflens": __version__, "task": TASK, "method": self.method, "encoder": asdict(self.config),
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        (folder / "config.json").write_text(json.dumps(self.describe(), indent=2) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    def load_weights(self, path: Path) -> None:
        """Those that `save` wrote, all of them and nothing else; DiffLensError if the file is damaged or another's."""
        try:
            state: dict[str, Tensor] = load_file(path)
            self.load_state_dict(state)
        except Exception as error:  # safetensors' own, OSError, or torch's for names and shapes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DiffLensError(f"{path} does not hold this encoder's weights: {reason}") from error
