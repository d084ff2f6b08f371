"""A trained BiGAN (Donahue et al., 2017): an encoder, which is read, and a generator, which draws images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

from torch import Tensor, nn

from difflens.backbones.encoder import EncoderBackbone, EncoderConfig
from difflens.backbones.pretrained import digest_of
from difflens.ranges import Pixels, Width
from difflens.run.reading import field_in


@dataclass(frozen=True)
class GeneratorConfig:
    """The configuration of a generator, which doubles the side of its maps with each width.

    Attributes:
        latent: dimensions of the latent vector.
        widths: channels of the maps, from the smallest map to the one with the side of the image.
        channels, side: channels and side, in pixels, of the image.
    """

    latent: Width
    widths: Sequence[Width]
    channels: Width
    side: Pixels


class Generator(nn.Module):
    """Transposed convolutions from latents to images, after DCGAN (Radford et al., 2016)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        start = config.side // 2 ** (len(config.widths) - 1)
        layers: list[nn.Module] = [
            nn.Linear(config.latent, first * start**2, bias=False),
            nn.Unflatten(1, (first, start, start)),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        ]
        for before, after in pairwise(config.widths):
            upsampling = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            layers += [upsampling, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, config.channels, 3, padding=1), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        """Return images, (B, C, S, S) in [-1, 1], from standard normal latents, (B, latent)."""
        images: Tensor = self.layers(latents)
        return images


class BiGANBackbone(EncoderBackbone):
    """A frozen encoder and the generator of the same training; features come from the encoder alone.

    Args:
        network, config, spec, image_size: as in `EncoderBackbone`.
        generator: it is frozen and set to evaluation mode.
    """

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
        config = field_in(description, "encoder", EncoderConfig)
        generator = Generator(field_in(description, "generator", GeneratorConfig))
        return cls(config.build(), config, generator, spec, image_size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"generator": asdict(self.generator.config)}

    def fingerprint(self) -> str:
        """Return a digest of the encoder and the generator: a run of `generate` depends on both."""
        return digest_of(self.generator, super().fingerprint().encode())
