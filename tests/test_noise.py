"""The forward process, and noise as a pure function of seed, image, step and draw."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from difflens.errors import DiffLensError
from difflens.noise import NoiseSchedule, philox, seeded_noise


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123 for philox4x32-10
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: int, words: tuple[int, ...]) -> None:
    assert tuple(philox(tuple(map(torch.tensor, counter)), key).tolist()) == words


@given(
    seed=st.integers(0, 2**63 - 1),
    t=st.integers(0, 999),
    draw=st.integers(0, 50),
    start=st.integers(0, 10**6),
)
def test_an_images_noise_does_not_depend_on_its_batch(seed: int, t: int, draw: int, start: int) -> None:
    index = torch.arange(start, start + 5)
    together = seeded_noise((3, 5, 7), index, t, seed, draw)
    alone = torch.cat([seeded_noise((3, 5, 7), index[i : i + 1], t, seed, draw) for i in range(5)])
    assert torch.equal(together, alone)
    shuffled = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(seeded_noise((3, 5, 7), index[shuffled], t, seed, draw), together[shuffled])


def test_one_step_for_all_or_one_each() -> None:
    index, steps = torch.arange(4), torch.tensor([3, 9, 3, 0])
    each = seeded_noise((1, 4, 4), index, steps, seed=1)
    for i, t in enumerate(steps.tolist()):
        assert torch.equal(each[i], seeded_noise((1, 4, 4), index, t, seed=1)[i])


def test_seed_index_step_and_draw_all_matter() -> None:
    base = {"index": torch.tensor([5]), "t": 20, "seed": 0, "draw": 0}
    changed = [{"index": torch.tensor([6])}, {"t": 21}, {"seed": 1}, {"seed": 2**32}, {"draw": 1}]
    reference = seeded_noise((1, 32, 32), **base)
    for change in changed:
        other = seeded_noise((1, 32, 32), **{**base, **change})
        correlation = torch.corrcoef(torch.stack([reference.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.15, change


def test_noise_is_standard_normal() -> None:
    values = seeded_noise((1, 64, 64), torch.arange(256), 7, seed=3).flatten().double()
    count = len(values)
    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / count) ** 0.5
    for quantile in (0.001, 0.025, 0.25, 0.5, 0.9, 0.999):
        expected = torch.distributions.Normal(0, 1).icdf(torch.tensor(quantile, dtype=torch.float64))
        share = (values < expected).double().mean()
        assert abs(share - quantile) < 5 * (quantile * (1 - quantile) / count) ** 0.5


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
        {"beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_schedules_equal_those_of_diffusers(config: dict) -> None:
    schedule = NoiseSchedule.from_config(config)
    scheduler = DDPMScheduler(**config)
    assert schedule.num_steps == len(scheduler.alphas_cumprod)
    # diffusers multiplies in float32, difflens in float64
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=2e-3, atol=1e-6
    )
    images, noise = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    steps = torch.tensor([0, 1, schedule.num_steps - 1])
    torch.testing.assert_close(
        schedule.add_noise(images, steps, noise),
        scheduler.add_noise(images, noise, steps),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_step_for_all_equals_a_step_for_each() -> None:
    schedule = NoiseSchedule.from_config()
    images, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    each = schedule.add_noise(images, torch.tensor([40, 40]), noise)
    assert torch.equal(schedule.add_noise(images, 40, noise), each)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "unknown noise schedule 'sigmoid'"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "variance-exploding"),
    ],
)
def test_schedules_that_are_refused(config: dict, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        NoiseSchedule.from_config(config)
