"""A check that a network read from bare weights denoises: options that weights do not show may be wrong."""

import torch
from torch import Tensor, nn

from difflens.backbones.base import DiffusionBackbone
from difflens.noise import seeded_noise
from difflens.run.console import warn

_SIDE = 64
"""Most pixels of a side of the images; a network reads small images faster."""

_SHARE = 0.3
"""The noise of the check, as a share of DDPM's schedule: much noise, and an image is still visible."""


@torch.no_grad()
def denoising_error(backbone: DiffusionBackbone) -> float:
    """Return the squared error on noised smooth images, divided by that of predicting zero.

    A trained network is far below 1. One whose attention heads or rows are mixed up is near 1 or above.
    """
    stride = max(block.stride for block in backbone.blocks)
    fixed = not hasattr(backbone, "unet")  # a transformer's positions are for one size
    side = backbone.image_size if fixed else min(backbone.image_size, max(_SIDE, stride))
    x_0 = backbone.encode(_smooth_images(4, backbone.in_channels, side))
    level = backbone.process.at(_SHARE)
    noise = seeded_noise(tuple(x_0.shape[1:]), torch.arange(4), level, seed=0)
    x_t = backbone.add_noise(x_0, level, noise)
    predicted = backbone.denoise(x_t, level)[:, : x_0.shape[1]]
    target = _target(backbone, x_0, noise, level)
    return float((predicted - target).square().mean() / target.square().mean())


def warn_if_implausible(backbone: DiffusionBackbone) -> None:
    """Print a warning if the network predicts no better than zero."""
    error = denoising_error(backbone)
    if not error < 1:
        warn(
            f"{backbone.spec} does not denoise: its error on noised smooth images is {error:.2g} times that "
            "of predicting zero. Check --num-head-channels, --num-heads, --attention-order, --noise-schedule "
            "and --family, which its weights do not show"
        )


def _target(backbone: DiffusionBackbone, x_0: Tensor, noise: Tensor, level: float) -> Tensor:
    """Return what the network is trained to predict."""
    process = backbone.process
    if process.prediction == "velocity":  # dx_t / dt of a straight line
        return noise - x_0 if process.log_snr(0.9) < process.log_snr(0.1) else x_0 - noise
    return noise


def _smooth_images(count: int, channels: int, side: int) -> Tensor:
    """Return blurred patches of colour, (count, channels, side, side) in [-1, 1]."""
    coarse = seeded_noise((channels, 4, 4), torch.arange(count), 0, seed=1)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (smooth / 2).clamp(-1, 1)
