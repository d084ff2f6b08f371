"""BiGAN: a generator and an encoder that together fool a discriminator of pairs of images and latents.

Losses are BigBiGAN's (Donahue and Simonyan, 2019, section 2), with unary terms besides the joint one.
Notation: x are images, z latents; y = +1 for pairs (x, E(x)), -1 for (G(z), z).
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from difflens import presets
from difflens.backbones.bigan import BiGANBackbone, Generator, GeneratorConfig
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import counted
from difflens.noise import Stream, seeded_noise
from difflens.pretraining import networks
from difflens.pretraining.export import Card
from difflens.pretraining.methods.base import PretrainingMethod, encoder_facts
from difflens.training.batch_norm import steady_batch_norms

LATENT = 64
BETAS = (0.5, 0.999)
"""The betas of Adam, as for DCGAN (Radford et al., 2016)."""
DISCRIMINATOR_RATE = 2
"""The discriminator's learning rate over that of encoder and generator (two time-scales: Heusel et al.,
2017)."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss h(y s), h(t) = max(0, 1 - t), summed over the scores and averaged over the
    images.

    Args:
        real: (B, 3): the scores s_x, s_z and s_xz of pairs (x, E(x)).
        fake: (B, 3): the scores of pairs (G(z), z).
    """
    return F.relu(1 - real).sum(1).mean() + F.relu(1 + fake).sum(1).mean()


def encoder_generator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return y (s_x + s_z + s_xz), averaged over the images; arguments as for `discriminator_loss`."""
    return real.sum(1).mean() - fake.sum(1).mean()


class Discriminator(nn.Module):
    """Scores of pairs: s_x = theta_x F(x), s_z = theta_z H(z), s_xz = theta_xz J(F(x), H(z)).

    F is a convolutional network, H and J are perceptrons, all with spectral normalisation (Miyato et al.,
    2018).

    Args:
        channels: channels of the images.
        widths: channels of F's maps; each layer after the first halves the side.
        side: side of the images in pixels.
        latent: size of z.
    """

    def __init__(self, channels: int, widths: Sequence[int], side: int, latent: int):
        super().__init__()
        size = widths[-1]
        layers: list[nn.Module] = [
            spectral_norm(nn.Conv2d(channels, widths[0], 3, padding=1)),
            nn.LeakyReLU(0.2),
        ]
        for width, wider in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(width, wider, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        smallest = side // 2 ** (len(widths) - 1)
        self.of_image = nn.Sequential(*layers, nn.Flatten(), _layer(size * smallest**2, size))
        self.of_latent = nn.Sequential(_layer(latent, size), _layer(size, size))
        self.of_pair = nn.Sequential(_layer(2 * size, size), _layer(size, size))
        self.scores = nn.ModuleList(spectral_norm(nn.Linear(size, 1)) for _ in range(3))

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """(B, 3): s_x, s_z, s_xz of images (B, C, S, S) in [-1, 1] with latents (B, latent)."""
        image, latent = self.of_image(images), self.of_latent(latents)
        parts = image, latent, self.of_pair(torch.cat([image, latent], 1))
        return torch.cat([score(part) for score, part in zip(self.scores, parts, strict=True)], 1).float()


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(spectral_norm(nn.Linear(inputs, outputs)), nn.LeakyReLU(0.2))


class BiGANMethod(PretrainingMethod):
    """Encoder, generator and discriminator. The encoder and the running average of the generator are saved.

    E(x) is deterministic, as in BiGAN (Donahue et al., 2017): a linear layer on the encoder's pooled maps,
    normalised over the batch, so that its mean and variance are those of z from the first step. Each step
    updates the discriminator, then one of the other two, on the same images and latents. The generator and F
    mirror the encoder's widths.
    """

    config: PretrainConfig
    description = "BigBiGAN's hinge losses, joint and unary; what is logged is the discriminator's"

    def __init__(self, config: PretrainConfig, images: ImageSplit, process: Accelerator):
        super().__init__(config, images, process)
        unet = presets.PRETRAIN[config.preset]["unet"]
        self.encoder_config = networks.encoder_config(unet, "resnet", config.image_size)
        self.channels, self.side = self.encoder_config.channels, self.encoder_config.side
        channels: Any = self.encoder_config.arguments["channels"]
        widths = tuple(channels)
        self.encoder: Any = self.encoder_config.build()
        self.latent = nn.Sequential(
            nn.Linear(self.encoder.num_features, LATENT), nn.BatchNorm1d(LATENT, affine=False)
        )
        self.generator = Generator(GeneratorConfig(LATENT, widths[::-1], self.channels, self.side))
        self.discriminator = Discriminator(self.channels, widths, self.side, LATENT)
        networks_by_name = {
            "encoder": self.encoder,
            "latent": self.latent,
            "generator": self.generator,
            "discriminator": self.discriminator,
        }
        self.networks = nn.ModuleDict(networks_by_name).to(self.device).train()
        steady_batch_norms(self.networks)
        self.encoder_generator = nn.ModuleList([self.encoder, self.latent, self.generator])
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False)
        settings: Any = {
            "lr": given(config.learning_rate),
            "betas": BETAS,
            "weight_decay": given(config.weight_decay),
        }
        self.optimizer = torch.optim.AdamW(self.encoder_generator.parameters(), **settings)
        settings["lr"] *= DISCRIMINATOR_RATE
        self.discriminator_optimizer = torch.optim.AdamW(self.discriminator.parameters(), **settings)
        self.rates = self.make_rates(self.optimizer)
        self.discriminator_rates = self.make_rates(self.discriminator_optimizer)

    def card(self) -> Card:
        return Card(
            title="Encoder and generator, BiGAN",
            introduction="Pre-trained by difflens with bigan, without labels. "
            "The generator's weights are averaged (EMA).",
            library="difflens",
            tags=("image-feature-extraction", "unconditional-image-generation", "difflens"),
            samples="one pass",
        )

    def facts(self) -> dict[str, str]:
        size = sum(map(torch.numel, self.generator.parameters()))
        return encoder_facts(self.encoder_config, self.encoder, self.networks) | {
            "generator": f"{counted(size, 'parameter')}, {LATENT} latents"
        }

    def step(self, batch: Batch) -> Tensor:
        x = to_float(batch.images)
        z = seeded_noise((LATENT,), batch.index, Stream.LATENT, self.config.seed, draw=self.epoch + 1)
        with self.autocast():
            encoded = self.latent(self.encoder(x)).float()
            generated = self.generator(z).float()
            # the discriminator's step
            loss = discriminator_loss(*self._scores(x, encoded.detach(), generated.detach(), z))
        self._update(self.discriminator_optimizer, loss, self.discriminator)
        # the step of encoder and generator, against the updated discriminator
        self.discriminator.requires_grad_(False)
        with self.autocast():
            opposed = encoder_generator_loss(*self._scores(x, encoded, generated, z))
        self._update(self.optimizer, opposed, self.encoder_generator)
        self.discriminator.requires_grad_(True)
        self.rates.step()
        self.discriminator_rates.step()
        self._average()
        return loss.detach()

    def _scores(self, x: Tensor, encoded: Tensor, generated: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's scores of (x, E(x)) and of (G(z), z)."""
        real, fake = self.discriminator(torch.cat([x, generated]), torch.cat([encoded, z])).chunk(2)
        return real, fake

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        optimizer.zero_grad()
        loss.backward()
        self.average_gradients(network.parameters())
        optimizer.step()

    def _average(self) -> None:
        """Update the running average of the generator's weights and normalisation statistics."""
        steps = self.rates.last_epoch
        decay = min(given(self.config.ema_decay), (1 + steps) / (10 + steps))
        new = self.generator.state_dict()
        for name, average in self.averaged.state_dict().items():
            if average.is_floating_point():
                average.lerp_(new[name], 1 - decay)

    def weights(self) -> list[Tensor]:
        networks = self.encoder, self.averaged, self.discriminator
        return [parameter.detach() for network in networks for parameter in network.parameters()]

    def parts(self) -> dict[str, Any]:
        # these names are part of the checkpoint format
        return {
            "networks": self.networks,
            "averaged": self.averaged,
            "optimizer": self.optimizer,
            "judge": self.discriminator_optimizer,
            "rates": self.rates,
            "judge_rates": self.discriminator_rates,
        }

    def backbone(self) -> BiGANBackbone:
        encoder, generator = (copy.deepcopy(network).cpu() for network in (self.encoder, self.averaged))
        return BiGANBackbone(encoder, self.encoder_config, generator).to(self.device)

    def write(self, folder: Path, backbone: BiGANBackbone) -> None:
        backbone.save(folder)
