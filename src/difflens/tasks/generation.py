"""Images from the same weights that are read for features."""

from math import ceil

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from difflens.backbones.blocks import DiffusionBackbone
from difflens.data.images import to_uint8
from difflens.errors import DiffLensError
from difflens.noise import seeded_noise


@torch.inference_mode()
def sample(
    backbone: DiffusionBackbone, count: int, steps: int = 50, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """Generate images with DDIM (Song et al., 2021; eta = 0).

    Image k depends on (seed, k) alone: not on `count` or `batch_size`.

    Returns:
        (count, C, H, W) float32 in [-1, 1], on the CPU.

    Raises:
        DiffLensError: more steps than the schedule has.
    """
    total = backbone.num_noise_steps
    if not 1 <= steps <= total:
        raise DiffLensError(f"{steps} sampling steps: the schedule allows 1 to {total}")
    scheduler = DDIMScheduler(
        trained_betas=(
            1 - backbone.schedule.alphas_cumprod / shifted(backbone.schedule.alphas_cumprod)
        ).numpy(),
        num_train_timesteps=total,
        prediction_type=backbone.prediction_type,
        clip_sample=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    shape = (backbone.in_channels, backbone.image_size, backbone.image_size)
    images = []
    for start in range(0, count, batch_size):
        index = torch.arange(start, min(start + batch_size, count), device=backbone.device)
        x = seeded_noise(shape, index, total, seed)  # t = total: a stream that no noised image uses
        for t in scheduler.timesteps.tolist():
            # a network with learned variance predicts it in the second half of its channels
            prediction = backbone.denoise(x, t)[:, : shape[0]]
            x = scheduler.step(prediction, t, x).prev_sample
        images.append(x.clamp(-1, 1).cpu())
    return torch.cat(images)


def shifted(alphas_cumprod: Tensor) -> Tensor:
    """abar_{t-1}, with abar_{-1} = 1."""
    return torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


def image_grid(images: Tensor, columns: int | None = None, gap: int = 1) -> Image.Image:
    """(N, C, H, W) float32 in [-1, 1] as one picture, row by row, on a white ground."""
    count, channels, height, width = images.shape
    columns = columns or ceil(count**0.5)
    rows = ceil(count / columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for k, image in enumerate(to_uint8(images)):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    array = sheet.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array)
