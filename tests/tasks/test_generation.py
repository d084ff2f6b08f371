"""Sampling: what diffusers' own pipeline draws, one seed per image."""

import pytest
import torch
from diffusers import DDIMScheduler

from difflens import DiffLensError, load_backbone, sample, seeded_noise
from difflens.tasks.generation import image_grid


def test_an_image_depends_on_its_seed_and_number_alone() -> None:
    backbone = load_backbone("fashion")
    together = sample(backbone, 5, steps=3, seed=1)
    assert together.shape == (5, 1, 32, 32)
    assert together.abs().max() <= 1
    torch.testing.assert_close(
        sample(backbone, 5, steps=3, seed=1, batch_size=2), together, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(sample(backbone, 2, steps=3, seed=1), together[:2], atol=1e-3, rtol=0)
    assert not torch.allclose(sample(backbone, 2, steps=3, seed=2), together[:2], atol=0.1)


def test_ddim_is_diffusers_ddim() -> None:
    backbone = load_backbone("fashion")
    scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    x = seeded_noise((1, 32, 32), torch.arange(2), 1000, seed=5)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(backbone.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(sample(backbone, 2, steps=4, seed=5), x.clamp(-1, 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_the_schedule_has(steps: int) -> None:
    with pytest.raises(DiffLensError, match="the schedule allows 1 to 1000"):
        sample(load_backbone("fashion"), 1, steps=steps)


def test_grid() -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 4, 6)
    grid = image_grid(images, columns=3, gap=1)
    assert grid.size == (3 * 7 - 1, 2 * 5 - 1)
    assert [grid.getpixel(place) for place in ((0, 0), (7, 0), (6, 0), (19, 8))] == [0, 64, 255, 255]
