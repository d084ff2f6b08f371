"""Sampling: parity with diffusers' pipelines and schedulers on the same noise, and noise by image."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from torch import Tensor

from difflens import DiffLensError, load_backbone, process_of, sample, seeded_noise
from difflens.backbones.base import DiffusionBackbone
from difflens.backbones.unet import UNetBackbone
from difflens.generation import base, respaced
from difflens.generation.respaced import RespacedSampler
from difflens.noise import Stream
from tests.helpers.networks import bigan

FASHION = Path(str(files("difflens") / "assets" / "fashion"))
DRAWING = (
    "pipelines.ddim.pipeline_ddim",
    "pipelines.ddpm.pipeline_ddpm",
    "schedulers.scheduling_ddim",
    "schedulers.scheduling_ddpm",
)


def tiny(out_channels: int = 3, **config: object) -> UNetBackbone:
    """Return a network for 8-pixel images and 40 noise steps, whose outputs are about as large as noise."""
    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    return UNetBackbone(unet, process_of({"num_train_timesteps": 40, **config}))


def noises(backbone: DiffusionBackbone, count: int, seed: int, timesteps: list[int]) -> list[Tensor]:
    """Return the sampler's noise for the first `count` images: the initial noise, then that of each step.

    That of the last step is 0: where it is not t = 0, diffusers' DDPM would add noise to the finished image.
    """
    total, shape = backbone.process.num_steps, (backbone.in_channels, *[backbone.image_size] * 2)
    streams = [total, *(total + t for t in timesteps[:-1])]
    return [
        *(seeded_noise(shape, torch.arange(count), stream, seed) for stream in streams),
        torch.zeros(count, *shape),
    ]


@pytest.fixture
def give_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], None]:
    """Make diffusers draw given tensors, one after the other."""

    def give(drawn: list[Tensor]) -> None:
        left = iter(drawn)
        for module in DRAWING:
            monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda *_, **__: next(left))

    return give


@torch.no_grad()
def reference(
    backbone: UNetBackbone, scheduler: Any, steps: int, count: int, seed: int, **step: Any
) -> Tensor:
    """Return the images of diffusers' own loop."""
    scheduler.set_timesteps(steps)
    x = noises(backbone, count, seed, [])[0]
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(backbone.unet(x, t).sample, t, x, **step).prev_sample
    return x.clamp(-1, 1)


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


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_diffusers_pipeline_of_the_bundled_folder_draws_the_same(
    sampler: str, give_noise: Callable[[list[Tensor]], None]
) -> None:
    pipeline = DDPMPipeline.from_pretrained(FASHION, torch_dtype=torch.float32)
    if sampler == "ddim":
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        pipeline = DDIMPipeline(pipeline.unet, scheduler)
    else:
        pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    backbone = load_backbone("fashion")
    assert isinstance(backbone, DiffusionBackbone)
    give_noise(noises(backbone, 3, 5, [999, 799, 599, 399, 199]))
    expected = pipeline(batch_size=3, num_inference_steps=5, output_type="np").images
    drawn = sample(backbone, 3, 5, seed=5, sampler=sampler).permute(0, 2, 3, 1) / 2 + 0.5
    torch.testing.assert_close(drawn, torch.from_numpy(expected), atol=5e-4, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_dpm_solver_is_diffusers(prediction: str, beta_schedule: str) -> None:
    backbone = tiny(num_train_timesteps=1000, prediction_type=prediction, beta_schedule=beta_schedule)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule=beta_schedule,
        prediction_type=prediction,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        thresholding=True,
        sample_max_value=1.0,
    )
    expected = reference(backbone, scheduler, 8, 3, seed=2)
    drawn = sample(backbone, 3, 8, seed=2, sampler="dpm-solver")
    torch.testing.assert_close(drawn, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0, 0.7])
def test_ddim_is_diffusers(prediction: str, eta: float, give_noise: Callable[[list[Tensor]], None]) -> None:
    backbone = tiny(prediction_type=prediction)
    scheduler = DDIMScheduler(num_train_timesteps=40, prediction_type=prediction, timestep_spacing="trailing")
    give_noise(noises(backbone, 3, 2, [39, 31, 23, 15, 7])[1:])
    expected = reference(backbone, scheduler, 5, 3, seed=2, eta=eta)
    torch.testing.assert_close(sample(backbone, 3, 5, seed=2, eta=eta), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize(
    ("variance", "prediction"),
    [
        ("fixed_small", "epsilon"),
        ("fixed_small_log", "v_prediction"),
        ("fixed_large", "sample"),
        ("learned_range", "epsilon"),
        ("learned_range", "v_prediction"),
    ],
)
def test_ddpm_is_diffusers(
    steps: int, variance: str, prediction: str, give_noise: Callable[[list[Tensor]], None]
) -> None:
    types = {"prediction_type": prediction, "variance_type": variance}
    backbone = tiny(6 if variance == "learned_range" else 3, **types)
    scheduler = DDPMScheduler(num_train_timesteps=40, timestep_spacing="trailing", **types)
    scheduler.set_timesteps(steps)
    give_noise(noises(backbone, 3, 2, scheduler.timesteps.tolist())[1:])
    expected = reference(backbone, scheduler, steps, 3, seed=2)
    drawn = sample(backbone, 3, steps, seed=2, sampler="ddpm")
    torch.testing.assert_close(drawn, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_few_steps_of_a_schedule_that_ends_in_pure_noise(
    sampler: str, give_noise: Callable[[list[Tensor]], None]
) -> None:
    """The beta of the first step is so near to 1 that it equals 1 in float32."""
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    backbone = tiny(3 if sampler == "ddim" else 6, **schedule)
    scheduler = (
        DDIMScheduler(**schedule, timestep_spacing="trailing")
        if sampler == "ddim"
        else DDPMScheduler(**schedule, timestep_spacing="trailing", variance_type="learned_range")
    )
    give_noise(noises(backbone, 3, 2, [999, 799, 599, 399, 199])[1:])
    expected = reference(backbone, scheduler, 5, 3, seed=2)
    torch.testing.assert_close(sample(backbone, 3, 5, seed=2, sampler=sampler), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(
    ("sampler", "eta"), [("dpm-solver", 0.0), ("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.0)]
)
def test_zero_terminal_snr_gives_images(sampler: str, eta: float, prediction: str) -> None:
    zero = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True, "prediction_type": prediction}
    backbone = tiny(3, **zero)
    assert float(backbone.process.alphas_cumprod[-1]) == 0
    for steps in (1, 2, 3, 6, 7, 15, 40):
        drawn = sample(backbone, 2, steps, sampler=sampler, eta=eta)
        assert drawn.isfinite().all()


@torch.no_grad()
def test_learned_variance_is_a_place_between_two_logarithms() -> None:
    """Compare one step with Nichol and Dhariwal (2021), equation 15, in float64."""
    backbone = tiny(6)
    sampler = RespacedSampler(backbone, "ddpm", steps=2)
    clean, noisy = (float(backbone.process.alphas_cumprod[t]) for t in (19, 39))
    index = torch.arange(4)
    start, noise = (seeded_noise((3, 8, 8), index, 40 + t, 0).double() for t in (0, 39))
    epsilon, v = backbone.unet(start.float(), 39).sample.double().chunk(2, dim=1)
    x0 = ((start - (1 - noisy) ** 0.5 * epsilon) / noisy**0.5).clamp(-1, 1)
    beta = 1 - noisy / clean
    mean = (clean**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - clean) * start) / (1 - noisy)
    low, high = (torch.tensor(value).double().log() for value in (beta * (1 - clean) / (1 - noisy), beta))
    share = (v + 1) / 2
    x = (mean + (share * high + (1 - share) * low).mul(0.5).exp() * noise).float()
    last = backbone.unet(x, 19).sample[:, :3]
    expected = ((x - (1 - clean) ** 0.5 * last) / clean**0.5).clamp(-1, 1)
    torch.testing.assert_close(sampler(index), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver"])
def test_learned_variance_is_left_out_where_it_is_not_used(sampler: str) -> None:
    twice, once = tiny(6), tiny(3)
    weights = twice.unet.state_dict()
    weights |= {name: weights[name][:3] for name in ("conv_out.weight", "conv_out.bias")}
    once.unet.load_state_dict(weights)
    drawn = (sample(backbone, 2, 5, sampler=sampler) for backbone in (twice, once))
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("steps", [3, 7, 29])
def test_any_number_of_steps_goes_from_each_noise_level_to_the_next(steps: int) -> None:
    """Compare with DDIM's equation 12; diffusers' DDIM errs where the steps do not divide the schedule."""
    backbone = tiny()
    sampler = RespacedSampler(backbone, steps=steps)
    assert (len({*sampler.timesteps}), sampler.timesteps[-1]) == (steps, 39)
    levels = [1.0, *backbone.process.alphas_cumprod[sampler.timesteps].tolist()]
    x = seeded_noise((3, 8, 8), torch.arange(2), 40, 0)
    for k, t in reversed([*enumerate(sampler.timesteps)]):
        noise = backbone.unet(x, t).sample
        x0 = (x - (1 - levels[k + 1]) ** 0.5 * noise) / levels[k + 1] ** 0.5
        x = levels[k] ** 0.5 * x0.clamp(-1, 1) + (1 - levels[k]) ** 0.5 * noise
    torch.testing.assert_close(sampler(torch.arange(2)), x.clamp(-1, 1), atol=2e-4, rtol=0)


def test_visited_steps_are_those_of_diffusers_trailing() -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    backbone = load_backbone("fashion")
    for steps in (1, 4, 16, 30, 100, 999, 1000):
        scheduler.set_timesteps(steps)
        assert RespacedSampler(backbone, steps=steps).timesteps[::-1] == scheduler.timesteps.tolist()


def test_noise_is_drawn_from_streams_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[int] = []

    def noise(shape: tuple[int, ...], index: Tensor, t: int, seed: int) -> Tensor:
        streams.append(t)
        return seeded_noise(shape, index, t, seed)

    for module in (base, respaced):
        monkeypatch.setattr(module, "seeded_noise", noise)
    before = torch.random.get_rng_state()
    sample(tiny(), 1, sampler="ddpm")
    assert sorted(streams) == [*range(40, 80)]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_steps_if_none_are_named() -> None:
    fashion = load_backbone("fashion")
    assert [RespacedSampler(fashion, name).steps for name in ("ddim", "dpm-solver", "ddpm")] == [50, 20, 1000]
    assert [RespacedSampler(tiny(), name).steps for name in ("ddim", "dpm-solver", "ddpm")] == [40, 20, 40]


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        (tiny, {"steps": 0}, "0 sampling steps: the schedule allows 1 to 40"),
        (tiny, {"steps": 41}, "41 sampling steps: the schedule allows 1 to 40"),
        (tiny, {"eta": 1.5}, "eta is 1.5; it must be between 0 and 1"),
        (tiny, {"eta": float("nan")}, "eta is nan"),
        (tiny, {"eta": 0.5, "sampler": "dpm-solver"}, "dpm-solver has none"),
        (tiny, {"sampler": "euler"}, "no sampler 'euler'; there are ddpm, ddim, dpm-solver"),
        (tiny, {"count": 0}, "count is 0"),
        (tiny, {"batch_size": 0}, "batch-size is 0"),
        (tiny, {"steps": 10.0}, "steps is 10.0: it must be a whole number"),
        (tiny, {"count": 2.5}, "count is 2.5: it must be a whole number"),
        (lambda: load_backbone("pixels"), {}, "pixels:3x32 cannot generate"),
        (lambda: tiny(prediction_type="flow"), {}, "unknown prediction_type 'flow'"),
        (lambda: tiny(5), {"steps": 1}, "it makes 5 x 8 x 8 out of 3 x 8 x 8"),
        (lambda: tiny(6, variance_type="learned"), {"sampler": "ddpm"}, "predicts its variance itself"),
        (lambda: tiny(variance_type="learned_range"), {"sampler": "ddpm"}, "predicts no variance, and its"),
        (lambda: tiny(variance_type="huge"), {"sampler": "ddpm"}, "its variance_type is huge"),
    ],
)
def test_what_cannot_be_drawn(backbone: Callable[[], Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        sample(backbone(), **{"count": 1, **settings})


def test_images_that_are_not_finite() -> None:
    backbone = tiny()
    backbone.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(DiffLensError, match="not finite"):
        sample(backbone, 1, 2)


def test_compiled_sampling_takes_one_graph_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the compiler, which is tested with the walk, returns the function unchanged."""
    compiled = []

    def keep(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", keep)
    backbone, index = tiny(), torch.arange(2)
    plain = RespacedSampler(backbone, steps=3)(index)
    assert not compiled
    torch.testing.assert_close(RespacedSampler(backbone, steps=3, compiled=True)(index), plain)
    assert len(compiled) == 1


def test_a_generator_draws_in_one_pass() -> None:
    """Image k depends on latents of (seed, k) alone; the generator uses its recorded statistics."""
    backbone = bigan()
    together = sample(backbone, 5, seed=1)
    latents = seeded_noise((8,), torch.arange(5), Stream.LATENT, 1)
    with torch.no_grad():
        torch.testing.assert_close(together, backbone.generator(latents))
    torch.testing.assert_close(sample(backbone, 5, seed=1, batch_size=2), together)
    torch.testing.assert_close(sample(backbone, 2, seed=1), together[:2])
    assert not torch.allclose(sample(backbone, 2, seed=2), together[:2], atol=0.01)
    for settings in ({"steps": 1}, {"sampler": "ddpm"}, {"sampler": "ddim"}, {"eta": 0.5}):
        with pytest.raises(DiffLensError, match="makes an image in one pass: leave out --sampler, --steps"):
            sample(backbone, 1, **settings)
    backbone.generator.layers[0].weight.data.fill_(torch.nan)
    with pytest.raises(DiffLensError, match="not finite"):
        sample(backbone, 1)
