"""Generation from every family: parity with diffusers' pipelines, and with its schedulers by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    ScoreSdeVePipeline,
)
from PIL import Image
from torch import Tensor

from difflens import DiffLensError, GenerateConfig, cli, generate, load_backbone, sample, seeded_noise
from difflens.backbones.base import DiffusionBackbone
from difflens.data.images import read_image, to_uint8
from difflens.generation.samplers import make_sampler
from difflens.noise import Stream, draws
from difflens.processes.schedulers import VARIANCE_PRESERVING
from difflens.studies import compare
from tests.helpers.dit import Dit
from tests.helpers.families import (
    write_autoencoder,
    write_consistency_model,
    write_dit,
    write_edm,
    write_flow,
    write_ldm,
    write_ncsnpp,
    write_unet,
)
from tests.helpers.pipelines import (
    write_flux,
    write_pixart_sigma,
    write_stable_diffusion,
    write_stable_diffusion_3,
    write_stable_diffusion_xl,
)

CLOSE = {"atol": 1e-4, "rtol": 0}
SEED = 5


def load(spec: object, **options: Any) -> DiffusionBackbone:
    backbone = load_backbone(str(spec), **options)
    assert isinstance(backbone, DiffusionBackbone)
    assert backbone.generates
    return backbone


def start(backbone: DiffusionBackbone, count: int = 2, first: int = 0) -> Tensor:
    """Return the initial noise of images, before the scheduler scales it."""
    stream = backbone.process.num_steps if backbone.process.unit == "step" else Stream.INITIAL
    return seeded_noise(backbone.input_shape, torch.arange(first, first + count), stream, SEED)


def generators(count: int = 2, first: int = 0) -> list[torch.Generator]:
    """Return the generators of images that a scheduler draws from."""
    words = draws(Stream.SAMPLER_SEEDS, torch.arange(first, first + count), SEED)[:, 0]
    return [torch.Generator().manual_seed(word) for word in words.tolist()]


def in_range(images: Any) -> Tensor:
    """Return a pipeline's images, (B, H, W, C) in [0, 1], as (B, C, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.fixture
def first_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Tensor], None]:
    """Make a pipeline of diffusers start from given noise."""

    def give(module: str, noise: Tensor) -> None:
        monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", lambda *_, **__: noise.clone())

    return give


LDM = "deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond"


@pytest.mark.parametrize("sampler", ["own", "ddim"])
def test_latent_diffusion_is_its_pipeline(
    tmp_path: Path, first_noise: Callable[[str, Tensor], None], sampler: str
) -> None:
    write_ldm(tmp_path)
    # an untrained network's latents stay small, and codes of the autoencoder do not hang on last bits
    DDIMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(tmp_path / "scheduler")
    backbone = load(tmp_path)
    pipeline = LDMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    if sampler == "ddim":
        config = pipeline.scheduler.config
        pipeline.scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing")
    first_noise(LDM, start(backbone))
    expected = in_range(pipeline(batch_size=2, num_inference_steps=5, output_type="np").images)
    drawn = sample(backbone, 2, 5, SEED, sampler=sampler)
    assert drawn.shape == (2, 3, 32, 32)
    torch.testing.assert_close(drawn, expected, **CLOSE)


@pytest.mark.parametrize("condition", ["null", "3"])
@pytest.mark.parametrize("sampler", ["own", "ddim", "dpm-solver"])
def test_dit_is_its_pipeline(
    tmp_path: Path, first_noise: Callable[[str, Tensor], None], sampler: str, condition: str
) -> None:
    backbone = load(write_dit(tmp_path), condition=condition)
    pipeline = DiTPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    if sampler != "own":
        kind: Any = DDIMScheduler if sampler == "ddim" else DPMSolverMultistepScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    first_noise("dit.pipeline_dit", start(backbone))
    labels = [10 if condition == "null" else 3] * 2
    expected = pipeline(labels, guidance_scale=1, num_inference_steps=8, output_type="np").images
    torch.testing.assert_close(sample(backbone, 2, 8, SEED, sampler=sampler), in_range(expected), **CLOSE)


@torch.no_grad()
def test_the_learned_variance_of_latents_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPM on latents, by hand, with the noise of the image at each step."""
    backbone = load(write_dit(tmp_path))
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    x = start(backbone)
    for t in scheduler.timesteps.tolist():
        noise = seeded_noise(backbone.input_shape, torch.arange(2), 1000 + t, SEED)
        noise *= t != scheduler.timesteps[-1]
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, drawn=noise, **__: drawn
        )
        x = scheduler.step(backbone.denoise(x, t), t, x).prev_sample
    assert x.abs().max() > 1  # clipped latents would be others
    expected = backbone.decode(x).clamp(-1, 1)
    torch.testing.assert_close(sample(backbone, 2, 4, SEED, sampler="ddpm"), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_its_scheduler(tmp_path: Path, kind: Any, prediction: str) -> None:
    backbone = load(write_unet(tmp_path, kind(prediction_type=prediction)))
    scheduler = kind(prediction_type=prediction)
    scheduler.set_timesteps(6)
    x = start(backbone) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = backbone.network(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(sample(backbone, 2, 6, SEED), x.clamp(-1, 1), **CLOSE)


@torch.no_grad()
def test_flow_matching_is_its_scheduler(tmp_path: Path) -> None:
    backbone = load(write_flow(tmp_path))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(6)
    x = start(backbone)
    for t in scheduler.timesteps:
        x = scheduler.step(backbone.network(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(sample(backbone, 2, 6, SEED), x.clamp(-1, 1), **CLOSE)


@pytest.mark.parametrize("steps", [None, 3])
def test_a_consistency_model_is_its_pipeline(tmp_path: Path, steps: int | None) -> None:
    backbone = load(write_consistency_model(tmp_path))
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        batch_size=2,
        num_inference_steps=steps or 1,
        latents=start(backbone),
        generator=generators(),
        output_type="np",
    ).images
    torch.testing.assert_close(sample(backbone, 2, steps, SEED), in_range(expected), **CLOSE)
    with pytest.raises(DiffLensError, match=r"CMStochasticIterativeScheduler of .* with 41 steps"):
        sample(backbone, 1, 41)


def test_variance_exploding_is_its_pipeline_image_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corrector's step is a mean over a batch, so the pipeline draws the images one by one."""
    backbone = load(write_ncsnpp(tmp_path))
    pipeline = ScoreSdeVePipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = sample(backbone, 2, 4, SEED)
    for k in range(2):
        monkeypatch.setattr(
            "diffusers.pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve.randn_tensor",
            lambda *_, k=k, **__: start(backbone, 1, k),
        )
        expected = pipeline(1, 4, generator=generators(1, k), output_type="np").images
        torch.testing.assert_close(drawn[k : k + 1], in_range(expected), **CLOSE)
    assert make_sampler(backbone).steps == 2000


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (write_stable_diffusion, {"guidance_scale": 1.0}),
        (write_stable_diffusion_xl, {"guidance_scale": 1.0}),
        (write_stable_diffusion_3, {"guidance_scale": 1.0}),
        (write_pixart_sigma, {"guidance_scale": 1.0, "use_resolution_binning": False}),
    ],
)
def test_text_to_image_is_its_pipeline_for_the_empty_prompt(
    tmp_path: Path, write: Callable[[Path], Path], settings: dict[str, Any]
) -> None:
    backbone = load(write(tmp_path))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    side, noise = backbone.image_size, start(backbone)
    given = {"height": side, "width": side, "latents": noise, "num_images_per_prompt": 2, **settings}
    expected = pipeline("", num_inference_steps=4, output_type="np", **given).images
    torch.testing.assert_close(sample(backbone, 2, 4, SEED, sampler="own"), in_range(expected), **CLOSE)


@pytest.mark.parametrize("scheduler", [{}, {"use_dynamic_shifting": False}])
@pytest.mark.parametrize("side", [32, 64])
def test_flux_shifts_its_levels_as_its_pipeline(tmp_path: Path, scheduler: dict[str, Any], side: int) -> None:
    backbone = load(write_flux(tmp_path, scheduler), image_size=side)
    pipeline = diffusers.FluxPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    noise = start(backbone)
    packed = pipeline._pack_latents(noise, *noise.shape)
    given = {"height": side, "width": side, "latents": packed, "num_images_per_prompt": 2}
    expected = pipeline("", num_inference_steps=4, output_type="np", **given).images
    torch.testing.assert_close(sample(backbone, 2, 4, SEED), in_range(expected), **CLOSE)


def test_stable_diffusion_3_shifts_its_levels_as_its_pipeline(tmp_path: Path) -> None:
    backbone = load(write_stable_diffusion_3(tmp_path, {"use_dynamic_shifting": True}))
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    given = {"height": 32, "width": 32, "latents": start(backbone), "num_images_per_prompt": 2}
    expected = pipeline("", num_inference_steps=4, guidance_scale=1.0, output_type="np", **given).images
    torch.testing.assert_close(sample(backbone, 2, 4, SEED), in_range(expected), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family", ["sit", "repa"])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_sit_and_repa_take_euler_steps(tmp_path: Path, family: str, learn_sigma: bool) -> None:
    torch.save(Dit(learn_sigma=learn_sigma).random_state(), tmp_path / "net.pt")
    options = {"family": family, "autoencoder": str(write_autoencoder(tmp_path / "vae"))}
    backbone = load(tmp_path / "net.pt", num_head_channels=8, **options)
    x = start(backbone)
    for k in range(5):
        t = k / 5 if family == "sit" else 1 - k / 5
        velocity = backbone.denoise(x, t)[:, :4]
        x = x + velocity / 5 if family == "sit" else x - velocity / 5
    expected = backbone.decode(x).clamp(-1, 1)
    torch.testing.assert_close(sample(backbone, 2, 5, SEED), expected, **CLOSE)
    with pytest.raises(DiffLensError, match="0 sampling steps: it takes at least 1"):
        sample(backbone, 1, 0)


@pytest.mark.parametrize("towards_noise", [True, False])
def test_euler_steps_reach_the_image_of_an_exact_velocity(tmp_path: Path, towards_noise: bool) -> None:
    """With one image in the world, v = x_0 - noise along the path: any number of steps ends there."""
    torch.save(Dit().random_state(), tmp_path / "net.pt")
    family, vae = "repa" if towards_noise else "sit", str(write_autoencoder(tmp_path / "vae"))
    backbone = load(tmp_path / "net.pt", num_head_channels=8, family=family, autoencoder=vae)
    image = torch.randn(1, *backbone.input_shape)

    def exact(x: Tensor, t: float, compiled: bool) -> Tensor:
        left = t if towards_noise else 1 - t  # the share of noise in x_t
        towards_image = (image - x) / left
        return -towards_image if towards_noise else towards_image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "denoise", exact)
        drawn = sample(backbone, 2, 7)
    torch.testing.assert_close(drawn, backbone.decode(image).clamp(-1, 1).expand_as(drawn), **CLOSE)


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small"])
def test_own_ddpm_is_its_pipeline(
    tmp_path: Path, first_noise: Callable[[str, Tensor], None], variance: str, steps: int
) -> None:
    twice = 6 if variance != "fixed_small" else 3
    scheduler = DDPMScheduler(num_train_timesteps=40, variance_type=variance)
    backbone = load(write_unet(tmp_path, scheduler, out_channels=twice))
    if variance == "learned":  # the scheduler takes it as the variance itself
        backbone.network.conv_out.weight.data[3:] = 0
        backbone.network.conv_out.bias.data[3:] = 0.01
    pipeline = DDPMPipeline(backbone.network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    first_noise("ddpm.pipeline_ddpm", start(backbone))
    given = {"num_inference_steps": steps, "generator": generators(), "output_type": "np"}
    expected = in_range(pipeline(2, **given).images)
    torch.testing.assert_close(sample(backbone, 2, steps, SEED, sampler="own"), expected, **CLOSE)
    assert make_sampler(backbone, "own").steps == 40


def test_tcd_adds_no_noise_as_in_a_pipeline(tmp_path: Path) -> None:
    """Pipelines pass eta = 0, and the scheduler's own default is 0.3."""
    backbone, scheduler = load(write_unet(tmp_path, diffusers.TCDScheduler())), diffusers.TCDScheduler()
    scheduler.set_timesteps(4)
    x = start(backbone)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = backbone.network(x, t).sample
        x = scheduler.step(output, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(sample(backbone, 2, 4, SEED, sampler="own"), x.clamp(-1, 1), **CLOSE)


@pytest.mark.parametrize("kind", VARIANCE_PRESERVING)
def test_any_variance_preserving_scheduler_draws_by_image(tmp_path: Path, kind: str) -> None:
    """Image k is the same alone and in a batch, and the global generator is left alone."""
    backbone = load(write_unet(tmp_path, getattr(diffusers, kind)()))
    if "Inverse" in kind:
        with pytest.raises(DiffLensError, match=f"{kind} of .* goes from images to noise: choose ddim"):
            sample(backbone, 1, 4, sampler="own")
        return
    before = torch.random.get_rng_state()
    together = sample(backbone, 3, 4, SEED, sampler="own")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(sample(backbone, 3, 4, SEED, 2, sampler="own"), together, atol=1e-3, rtol=0)
    assert not torch.allclose(sample(backbone, 3, 4, SEED + 1, sampler="own"), together, atol=0.1)


@pytest.mark.parametrize(
    "scheduler",
    [
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "EDMDPMSolverMultistepScheduler",
    ],
)
def test_any_other_scheduler_draws_by_image(tmp_path: Path, scheduler: str) -> None:
    backbone = load(write_unet(tmp_path, getattr(diffusers, scheduler)()))
    before = torch.random.get_rng_state()
    together = sample(backbone, 3, 4, SEED)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(sample(backbone, 3, 4, SEED, 2), together, atol=1e-3, rtol=0)


def test_variance_exploding_draws_by_image(tmp_path: Path) -> None:
    backbone = load(write_ncsnpp(tmp_path))
    together = sample(backbone, 3, 4, SEED)
    torch.testing.assert_close(sample(backbone, 3, 4, SEED, 2), together, atol=1e-3, rtol=0)


def test_a_variance_that_its_scheduler_does_not_use_is_cut_off(tmp_path: Path) -> None:
    """DPM-Solver would keep three channels of any output with a learned variance."""
    write_dit(tmp_path)
    drawn = []
    for variance in ("learned_range", None):
        scheduler = DPMSolverMultistepScheduler(variance_type=variance)
        scheduler.save_pretrained(tmp_path / "scheduler")
        drawn.append(sample(load(tmp_path), 2, 4, sampler="own"))
    assert torch.equal(*drawn)


def test_watch_counts_the_calls_of_a_scheduler(tmp_path: Path) -> None:
    for kind, calls in (("HeunDiscreteScheduler", 7), ("PNDMScheduler", 13), ("DDIMScheduler", 4)):
        backbone = load(write_unet(tmp_path / kind, getattr(diffusers, kind)()))
        sampler, seen = make_sampler(backbone, "own", 4), []
        sampler(torch.arange(1), lambda seen=seen: seen.append(1))
        assert (sampler.steps, sampler.calls, len(seen)) == (4, calls, calls)


def test_samplers_if_none_are_named(tmp_path: Path) -> None:
    found = {}
    for write in (write_ldm, write_dit, write_edm, write_flow, write_consistency_model, write_ncsnpp):
        sampler = make_sampler(load(write(tmp_path / write.__name__)))
        found[write.__name__.removeprefix("write_")] = (sampler.name, sampler.steps)
    assert found == {
        "ldm": ("ddim", 50),
        "dit": ("ddim", 50),
        "edm": ("own", 50),
        "flow": ("own", 50),
        "consistency_model": ("own", 1),
        "ncsnpp": ("own", 2000),
    }
    for kind, steps in (("LCMScheduler", 4), ("DDPMScheduler", 1000), ("PNDMScheduler", 50)):
        backbone = load(write_unet(tmp_path / kind, getattr(diffusers, kind)()))
        assert make_sampler(backbone, "own").steps == steps


class _Refused:
    """Folders that a sampler cannot draw from, by name."""

    @staticmethod
    def shifted(folder: Path) -> Path:
        return write_unet(folder, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))

    @staticmethod
    def stochastic(folder: Path) -> Path:
        return write_unet(folder, FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))

    @staticmethod
    def without_scheduler(folder: Path) -> Path:
        write_unet(folder)
        (folder / "scheduler_config.json").unlink()
        return folder

    @staticmethod
    def without_variance(folder: Path) -> Path:
        return write_unet(folder, DDPMScheduler(variance_type="learned_range"))

    @staticmethod
    def ancestral(folder: Path) -> Path:
        return write_unet(folder, EulerAncestralDiscreteScheduler())

    @staticmethod
    def of_images(folder: Path) -> Path:
        return write_unet(folder, diffusers.KDPM2DiscreteScheduler(prediction_type="sample"))

    @staticmethod
    def growing(folder: Path) -> Path:
        return write_unet(folder, diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]))

    @staticmethod
    def of_whole_steps(folder: Path) -> Path:
        learned = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
        return write_unet(folder, diffusers.EulerDiscreteScheduler(), **learned)

    @staticmethod
    def runge_kutta(folder: Path) -> Path:
        return write_unet(folder, diffusers.PNDMScheduler())

    @staticmethod
    def from_pure_noise(folder: Path) -> Path:
        zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return write_unet(folder, diffusers.DDIMScheduler(**zero))

    @staticmethod
    def three_channels(folder: Path) -> Path:
        return write_edm(folder, out_channels=5)


@pytest.mark.parametrize(
    ("write", "settings", "message"),
    [
        (
            write_edm,
            {"sampler": "ddim"},
            "ddim draws from variance-preserving .* is EDM: choose the sampler own",
        ),
        (write_flow, {"sampler": "dpm-solver"}, "is linear interpolant: choose the sampler own"),
        (write_ncsnpp, {"sampler": "ddpm"}, "is variance exploding: choose the sampler own"),
        (write_edm, {"eta": 0.5}, "eta is 0.5, and own has none: it is for the sampler ddim"),
        (write_edm, {"steps": 0}, "0 sampling steps: it takes at least 1"),
        (_Refused.ancestral, {"sampler": "own", "steps": 1001}, "the schedule allows 1 to 1000"),
        (_Refused.shifted, {}, r"use_dynamic_shifting.*not of UNet2DModel"),
        (_Refused.stochastic, {}, "draws its noise for whole batches"),
        (
            _Refused.without_scheduler,
            {"sampler": "own"},
            "names a scheduler .*: choose ddim, ddpm or dpm-solver",
        ),
        (_Refused.without_variance, {"sampler": "own"}, "the network predicts none: choose ddim"),
        (_Refused.of_images, {"sampler": "own"}, "takes no network that predicts the image .*: choose ddim"),
        (_Refused.growing, {}, "changes the size of the image between its steps"),
        (_Refused.of_whole_steps, {"sampler": "own"}, "fractions of steps, and the network knows whole ones"),
        (_Refused.runge_kutta, {"sampler": "own", "steps": 3}, "3 sampling steps: the schedule allows 4 to"),
        (_Refused.from_pure_noise, {"sampler": "own"}, "its last step is pure noise"),
        (_Refused.three_channels, {}, "takes 3 channels and gives 5: that is no prediction for x_t"),
    ],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, write: Callable[[Path], Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        sample(load_backbone(str(write(tmp_path))), 1, **{"steps": 2, **settings})


def test_a_step_that_fails_names_its_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("not so")

    monkeypatch.setattr(DDIMScheduler, "step", fail)
    with pytest.raises(DiffLensError, match=r"DDIMScheduler of .* with 2 steps: not so"):
        sample(load(write_unet(tmp_path, DDIMScheduler())), 1, 2, sampler="own")


def test_latents_and_images_that_are_not_finite(tmp_path: Path) -> None:
    backbone = load(write_ldm(tmp_path))
    backbone.network.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(DiffLensError, match="not finite"):
        sample(backbone, 1, 2)


def test_the_command_line_writes_images_of_latents(tmp_path: Path) -> None:
    folder, out = write_ldm(tmp_path / "ldm"), tmp_path / "out"
    line = f"generate --backbone {folder} -n 4 --steps 5 --batch-size 4 --out {out}"
    cli.main(line.split())
    metrics = {"images": 4, "sampler": "ddim", "steps": 5}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    pictures = [read_image(out / "images" / f"{k:06d}.png") for k in range(4)]
    assert torch.stack(pictures).shape == (4, 3, 32, 32)
    assert Image.open(out / "grid.png").size == (2 * 33 - 1, 2 * 33 - 1)
    assert torch.equal(torch.stack(pictures), to_uint8(sample(load(folder), 4, 5)))


def test_a_run_of_an_own_scheduler_grows(tmp_path: Path) -> None:
    folder = write_consistency_model(tmp_path / "model")
    run = GenerateConfig(out=tmp_path / "run", n=2, backbone=str(folder), steps=3, batch_size=2, device="cpu")
    assert generate(run).metrics() == {"images": 2, "sampler": "own", "steps": 3}
    grown = GenerateConfig(**{**vars(run), "n": 5, "resume": True})
    assert generate(grown).images == 5
    whole = GenerateConfig(**{**vars(run), "n": 5, "out": tmp_path / "whole"})
    generate(whole)
    for k in range(5):
        name = f"images/{k:06d}.png"
        assert (run.out / name).read_bytes() == (whole.out / name).read_bytes()
    named = GenerateConfig(**{**vars(grown), "sampler": "own"})
    assert generate(named).images == 5


def test_a_run_with_the_default_by_name_goes_on_without_it(tmp_path: Path) -> None:
    """Runs of earlier versions recorded ddim, which was the default."""
    folder = write_dit(tmp_path / "model")
    run = GenerateConfig(
        out=tmp_path / "run", n=1, backbone=str(folder), sampler="ddim", steps=2, batch_size=2, device="cpu"
    )
    generate(run)
    assert generate(GenerateConfig(**{**vars(run), "n": 2, "resume": True, "sampler": None})).images == 2
    with pytest.raises(DiffLensError, match="sampler was 'ddim', now 'own'"):
        generate(GenerateConfig(**{**vars(run), "resume": True, "sampler": "own"}))


def test_a_packed_output_that_is_named_generates_too(tmp_path: Path) -> None:
    assert load(write_flux(tmp_path, out_channels=16)).out_channels == 4


def test_compare_draws_by_a_sampler_that_can(tmp_path: Path) -> None:
    assert compare._sampler(load(write_dit(tmp_path / "dit"))) == "dpm-solver"
    assert compare._sampler(load(write_edm(tmp_path / "edm"))) == "own"
