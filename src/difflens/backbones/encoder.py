"""Encoders that `difflens pretrain` trained by other methods than diffusion: a timm network in a folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from safetensors.torch import save_file
from torch import nn

from difflens.backbones.timm import TimmBackbone
from difflens.errors import DiffLensError
from difflens.ranges import Pixels, Range, Width
from difflens.run.files import write_text
from difflens.run.reading import field_in, read_tensors, reason
from difflens.version import __version__

TASK = "pretraining"
"""The value of `task` in config.json; that of a trained model is its task."""

Argument = Annotated[int, Range(0, 2**12)]
"""A number among the arguments of a timm network."""
ArgumentName = Literal[
    "layers",
    "channels",
    "stem_type",
    "stem_width",
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "dynamic_img_size",
]
"""The arguments that `difflens pretrain` gives; others of timm could read files or the hub."""


@dataclass(frozen=True)
class EncoderConfig:
    """The configuration of a timm network for small images.

    Attributes:
        architecture: timm's name of the model.
        arguments: further arguments of `timm.create_model`, besides the shape of the images.
        channels, side: channels and side, in pixels, of the images, whose values are in [-1, 1].
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    architecture: Literal["resnet18", "vit_tiny_patch16_224"]
    arguments: Mapping[ArgumentName, str | bool | Argument | tuple[Argument, ...]]
    channels: Width
    side: Pixels

    def build(self) -> Any:
        """Return the network without a classifier, its weights drawn from torch's generator.

        A ResNet has a first convolution of stride 1 without pooling after it, as is usual for small images.
        It therefore keeps the resolution up to its second stage.

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
            self.architecture,
            num_classes=0,
            in_chans=self.channels,
            pretrained_cfg_overlay=images,
            **{str(name): value for name, value in self.arguments.items()},
        )
        if hasattr(network, "maxpool"):
            network.conv1[0].stride = (1, 1)
            network.maxpool = nn.Identity()
        return network


class EncoderBackbone(TimmBackbone):
    """A frozen encoder that `difflens pretrain` has trained.

    Args:
        network: the result of `config.build()`, with any weights.
        config: the configuration of the network.
        method: the pre-training method.
        spec: the user's name of the backbone.
        image_size: side of the images, in pixels; None: `config.side`.
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
        """Return the backbone of a result of `describe`, with weights drawn from torch's generator."""
        config = field_in(description, "encoder", EncoderConfig)
        return cls(config.build(), config, field_in(description, "method", str), spec, image_size)

    def describe(self) -> dict[str, Any]:
        """Return the content of config.json."""
        encoder = asdict(self.config)
        return {"difflens": __version__, "task": TASK, "method": self.method, "encoder": encoder}

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        write_text(folder / "config.json", json.dumps(self.describe(), indent=2) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    def load_weights(self, path: Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            DiffLensError: the file is damaged, or its names or shapes are not exactly those of this network.
        """
        try:
            self.load_state_dict(read_tensors(path))
        except (DiffLensError, RuntimeError) as error:  # damage, or other names and shapes
            raise DiffLensError(f"{path} does not hold this encoder's weights: {reason(error)}") from error
