"""What a BiGAN leaves behind: its encoder, which is read, and its generator, which draws."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

from torch import Tensor, nn

from difflens.backbones.base import digest_of
from difflens.backbones.encoder import EncoderBackbone, EncoderConfig


@dataclass(frozen=True)
class GeneratorConfig:
    """A generator that doubles the side with each width.

    Attributes:
        latent: numbers that an image is made from.
        widths: channels of its maps, from the smallest on; the last one has the side of the image.
        channels, side: of the image.
    """

    latent: int
    widths: Sequence[int]
    channels: int
    side: int


class Generator(nn.Module):
    """Latents, (B, latent) standard normal, to images, (B, C, S, S) in [-1, 1], by transposed convolutions.

    The construction of DCGAN (Radford et al., 2016).
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        start = config.side // 2 ** (len(config.widths) - 1)
        layers: list[nn.Module] = [
            nn.Linear(config.latent, first * start**2, bias=False), nn.Unflatten(1, (first, start, start)),
            nn.BatchNorm2d(first), nn.ReLU(),
        ]  # fmt: skip
        for width, wider in pairwise(config.widths):
            layers += [
                nn.ConvTranspose2d(width, wider, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wider), nn.ReLU(),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, config.channels, 3, padding=1), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.layers(latents)
        return images


class BiGANBackbone(EncoderBackbone):
    """A frozen encoder with the generator that it was trained with; reading it runs the encoder alone."""

    def __init__(
        self,
        network: nn.Module,
        config: EncoderConfig,
        generator: Generator,
        spec: str = "pre-trained",
        image_size: int | None = None,
    ):
        super().__init__(network, config, "bigan", spec, image_size)
        self.generator = generator.requires_grad_(False).eval()

    @property
    def generates(self) -> bool:
        return True

    @classmethod
    def from_description(cls, description: dict[str, Any], spec: str, image_size: int | None) -> Self:
        config = EncoderConfig(**description["encoder"])
        generator = Generator(GeneratorConfig(**description["generator"]))
        return cls(config.build(), config, generator, spec, image_size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"generator": asdict(self.generator.config)}

    def fingerprint(self) -> str:
        """Of the generator too, so that a run of `generate` knows its own."""
        return digest_of(self.generator, super().fingerprint().encode())
