"""Noise that depends on the image and not on the batch.

Noise is a pure function of (seed, image index, noise level, draw). It comes from the counter-based generator
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), evaluated in tensor
operations, and the Box-Muller transform. Features therefore do not depend on batch size, workers, processes
or device.
"""

from enum import IntEnum
from math import pi

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_PRIME = 2**31 - 1

TEST_IMAGES = 2**30
"""The number of the first test image. Training images count from 0, so no test image has the noise of a
training image, by which a head could know it."""

PICTURE = TEST_IMAGES
"""The number of a picture in no data set. All pictures have it, so none is read with the noise of a training
image."""


class Stream(IntEnum):
    """All random streams of a seed, besides the noise of images at their noise levels.

    A Philox counter has four words: (position in the noise, image, noise level, draw). The level's word is
    the step, or the bits of a float32: those of levels, which are not negative, end below 2^31. A stream of
    the first group replaces the position, and noise has far fewer positions. A stream of the second group
    replaces the level. The values must never change: features and resumed runs depend on them.
    """

    # instead of the position: `draws`, `random_order`
    AUGMENTATION = 0xFFFFFFFF  # flips, crops and shifts of training images, and the views of SimCLR
    EPOCH_ORDER = 0xFFFFFFFE  # the order in which an epoch reads the training images
    SUBSET = 0xFFFFFFFD  # the images of a subset: few labels, or balanced classes
    FIDELITY_IMAGES = 0xFFFFFFFB  # the real images that generated ones are compared with
    KERNEL_IMAGES = 0xFFFFFFFA  # the images that the kernel distance reads
    SAMPLER_SEEDS = 0xFFFFFFF9  # the seeds of the generators that a scheduler of diffusers draws from
    CONTENT = 0xFFFFFFF8  # the weights of pixels in `content_index`
    HELD_OUT = 0xFFFFFFF7  # the images that are held out of data without a split of its own

    # instead of the noise step: `seeded_noise`
    PERTURBATION = -1  # noise on the images of the reference distances
    INITIAL = -2  # a sampler's initial noise, in processes whose levels are no steps
    MASK = 0  # the patches that MAE masks; its networks add no noise to images
    LATENT = 1  # the latents of BiGAN's generator; its networks add no noise to images

    @staticmethod
    def start(num_noise_steps: int) -> int:
        """Return the stream of a sampler's initial noise: the first step after those of the schedule."""
        return num_noise_steps

    @staticmethod
    def sampling(num_noise_steps: int, t: int) -> int:
        """Return the stream of the noise that a sampler adds at the noise step `t` > 0."""
        return num_noise_steps + t


def seeded_noise(
    shape: tuple[int, ...], index: Tensor, t: float | Tensor, seed: int, draw: int | Tensor = 0
) -> Tensor:
    """Return standard normal noise, (B, *shape) float32, on the device of `index`.

    Args:
        shape: shape of one image, (C, H, W), or of one latent.
        index: numbers of the images, (B,) long; see `ImageSplit.noise_index`.
        t: the noise level, one for all images or (B,): a whole step, or a float that is not negative; or a
            stream that replaces it.
        seed: 64-bit seed of the run.
        draw: number of the independent noise sample.
    """
    count = torch.Size(shape).numel()
    words = torch.arange((count + 3) // 4, device=index.device)
    # one Philox call gives four words, which are two Box-Muller pairs
    uniform = philox((words, index[:, None], _column(t, index), _column(draw, index)), seed)
    # 24 bits: u in (0, 1) is exact in float32 and never 0
    u = ((uniform >> 8).float() + 0.5) * 2.0**-24
    radius = torch.sqrt(-2 * torch.log(u[..., 0::2]))
    angle = 2 * pi * u[..., 1::2]
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normal.flatten(1)[:, :count].unflatten(1, shape)


def draws(stream: Stream, index: Tensor, seed: int, epoch: int = 0) -> Tensor:
    """Return four random words for each image, (B, 4) long in [0, 2**32).

    They are a pure function of (stream, seed, epoch, index).

    Args:
        stream: one of the first group.
        index: numbers of the images in their data set, (B,) long.
        seed: 64-bit seed of the run.
        epoch: number of the epoch, from 0.
    """
    zero = torch.zeros_like(index)
    return philox((zero + stream, index, zero + epoch, zero), seed)


def random_order(stream: Stream, index: Tensor, seed: int, epoch: int = 0) -> Tensor:
    """Return the rows of `index`, (N,) long, in a random order; arguments as in `draws`."""
    keys = draws(stream, index, seed, epoch)
    return (keys[:, 0] << 31 | keys[:, 1] >> 1).argsort(stable=True)


def content_index(images: Tensor) -> Tensor:
    """Return a number for each image that its content decides, (B,) long in [0, 2**31 - 1).

    It takes the place of a position in a data set for images that have none. Pixels are rounded to 256
    levels: rounding errors change nothing in images of 8 bits; others may lie between two levels. The
    weighted sum of the levels modulo a prime is a universal hash (Carter and Wegman, 1979): two different
    images have one number with probability 2**-31.

    Args:
        images: (B, C, H, W) in [-1, 1].
    """
    levels = ((images.detach().float() + 1) * 127.5).round().long().flatten(1)
    words = torch.arange((levels.shape[1] + 3) // 4, device=images.device)
    weights = draws(Stream.CONTENT, words, seed=0).flatten()[: levels.shape[1]] % _PRIME
    # each product is below 2**39, and the sum of 2**24 of them is exact in 64 bits
    return (levels * weights).sum(1) % _PRIME


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Return four 32-bit words for each counter, (..., 4) int64: Philox4x32-10 (Salmon et al., 2011).

    Args:
        counter: four broadcastable int64 tensors, whose low 32 bits are used.
        seed: the 64-bit key.
    """
    c0, c1, c2, c3 = (word & _MASK for word in torch.broadcast_tensors(*counter))
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # the product's bits are right in two's complement even where int64 overflows
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _MASK, (p1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _column(value: float | Tensor, index: Tensor) -> Tensor:
    """Return whole numbers, and the bits of float32 for others, (B or 1, 1) long."""
    words = torch.as_tensor(value, device=index.device)
    if words.is_floating_point():
        words = words.float().view(torch.int32)
    return words.long().reshape(-1, 1)
