"""Autoencoders of latent diffusion: from images to the latents that are noised, and back."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from difflens.backbones.pretrained import digest_of, read_config, read_network
from difflens.errors import DiffLensError, listing
from difflens.run.text import a

KINDS = ("AutoencoderKL", "VQModel")
"""Autoencoders of diffusers that difflens reads latents from."""


_IMAGES = 8
"""Images that pass at a time: 64 images of 512 pixels would take tens of gigabytes."""


class Autoencoder(nn.Module):
    """A frozen autoencoder of diffusers, in float32, with the scale and shift that its pipelines apply.

    The latents are scale * (z - shift), where z is the mean of the posterior (KL) or the encoder's output
    before quantisation (VQ).

    Args:
        network: an `AutoencoderKL` or a `VQModel`.
        written: the content of its configuration file. A `VQModel` whose file has no `scaling_factor` was
            trained with 1.0, although the class of diffusers says 0.18215.

    Attributes:
        in_channels: channels of the images.
        channels: channels of the latents.
        stride: side of the images divided by the side of the latents.
        scales, shifts: scale and shift as numbers, one for all channels or one each.

    Raises:
        DiffLensError: difflens does not know the latents of this class.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Any, written: dict[str, Any]):
        super().__init__()
        name = type(network).__name__
        if name not in KINDS:
            raise DiffLensError(f"{name} is no autoencoder that difflens knows; known are {listing(KINDS)}")
        self.network = network.requires_grad_(False).eval()
        config = network.config
        self.in_channels, self.channels = int(config.in_channels), int(config.latent_channels)
        self.stride = 2 ** (len(config.block_out_channels) - 1)
        default = 1.0 if name == "VQModel" else config.scaling_factor
        scale = written.get("scaling_factor", default)
        if scale is None:
            raise DiffLensError(f"the scaling_factor of {name} is null: its latents have no known scale")
        shift, mean, std = (config.get(key) for key in ("shift_factor", "latents_mean", "latents_std"))
        stated = [len(each) for each in (mean, std) if each is not None]
        if stated not in ([], [self.channels] * 2):
            raise DiffLensError(
                f"latents_mean and latents_std of {name} must both have {self.channels} numbers"
            )
        if mean is not None and std is not None:  # the normalised latents of SDXL's relatives
            self.scales, self.shifts = tuple(scale / each for each in std), tuple(mean)
        else:
            self.scales, self.shifts = (float(scale),), (float(shift or 0.0),)
        self._register("scale", self.scales)
        self._register("shift", self.shifts)

    @classmethod
    def from_folder(cls, folder: Path, *, meta: bool = False) -> "Autoencoder":
        """Read an autoencoder in diffusers format.

        Args:
            folder: holds config.json and the weights.
            meta: make it on the meta device, without weights.

        Raises:
            DiffLensError: the folder holds no known autoencoder, or its files are damaged.
        """
        written = read_config(folder, f"{folder} is not an autoencoder")
        name = written.get("_class_name")
        if name not in KINDS:
            raise DiffLensError(
                f"{folder} holds {a(str(name))}; autoencoders that difflens knows are {listing(KINDS)}"
            )
        return cls(read_network(getattr(diffusers, str(name)), folder, written, meta=meta), written)

    def describe(self) -> str:
        """Return its class, scale and shift, in words."""
        if len(self.scales) > 1:
            return f"{type(self.network).__name__}, scaled and shifted by channel"
        return f"{type(self.network).__name__}, scale {self.scales[0]:g}, shift {self.shifts[0]:g}"

    def fingerprint(self) -> str:
        """Return a hex digest of weights, scale and shift."""
        return digest_of(self.network, self.scale.cpu().numpy().tobytes(), self.shift.cpu().numpy().tobytes())

    def _register(self, name: str, values: tuple[float, ...]) -> None:
        self.register_buffer(name, torch.tensor(values, device="cpu").reshape(1, -1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents, (B, channels, H / stride, W / stride) float32, of images (B, C, H, W) in [-1, 1].

        Raises:
            DiffLensError: a latent is not finite.
        """
        exporting = torch.compiler.is_exporting()  # a graph takes any number of images, and cannot raise
        images = images.to(self.network.dtype)
        parts = (images,) if exporting else images.split(_IMAGES)
        z = torch.cat([self._encoded(part).float() for part in parts])
        # one order in memory: kernels choose by it, and stored latents must give the same bits
        latents = ((z - self.shift.float()) * self.scale.float()).contiguous()
        if not (exporting or latents.is_meta or latents.isfinite().all()):
            raise DiffLensError(
                f"the latents of {type(self.network).__name__} are not finite: check the weights of the "
                "autoencoder, and the images"
            )
        return latents

    def _encoded(self, images: Tensor) -> Tensor:
        encoded = self.network.encode(images)
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images, (B, C, H, W) float32 in about [-1, 1], of latents (B, channels, H / stride, ...)."""
        z = (latents.float() / self.scale.float() + self.shift.float()).to(self.network.dtype)
        return torch.cat([self.network.decode(part).sample.float() for part in z.split(_IMAGES)])

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stay in evaluation mode."""
        return super().train(False)
