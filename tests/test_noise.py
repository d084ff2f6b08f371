"""The forward process, and noise as a pure function of seed, image, step and draw."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from difflens import noise
from difflens.noise import Stream, draws, philox, random_order, seeded_noise
from difflens.processes.schedulers import process_of


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


WORDS = {
    "AUGMENTATION": 0xFFFFFFFF,
    "EPOCH_ORDER": 0xFFFFFFFE,
    "SUBSET": 0xFFFFFFFD,
    "FIDELITY_IMAGES": 0xFFFFFFFB,
    "KERNEL_IMAGES": 0xFFFFFFFA,
    "SAMPLER_SEEDS": 0xFFFFFFF9,
    "CONTENT": 0xFFFFFFF8,
    "HELD_OUT": 0xFFFFFFF7,
}
STEPS = {"PERTURBATION": -1, "INITIAL": -2, "MASK": 0, "LATENT": 1}


def test_the_streams_have_the_values_that_features_and_resumed_runs_depend_on() -> None:
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == WORDS | STEPS
    assert [Stream.start(steps) for steps in (1, 1000)] == [1, 1000]
    assert [Stream.sampling(1000, t) for t in (1, 20, 999)] == [1001, 1020, 1999]
    orders = [random_order(Stream[name], torch.arange(8), seed=3, epoch=2).tolist() for name in WORDS]
    assert orders == [
        [2, 5, 4, 6, 1, 0, 3, 7],
        [2, 4, 5, 1, 6, 3, 0, 7],
        [6, 2, 3, 4, 1, 7, 0, 5],
        [5, 3, 1, 7, 4, 6, 0, 2],
        [6, 4, 7, 1, 5, 2, 0, 3],
        [4, 6, 5, 3, 1, 0, 2, 7],
        [6, 5, 7, 3, 1, 0, 2, 4],
        [3, 7, 4, 2, 5, 6, 1, 0],
    ]
    assert len({*WORDS.values()}) == len(WORDS)
    assert draws(Stream.AUGMENTATION, torch.arange(2), seed=3, epoch=2).tolist() == [
        [4090909597, 3810624248, 4055922422, 448900495],
        [2171608233, 2037897225, 1268197218, 2576774466],
    ]
    values = torch.cat([seeded_noise((2,), torch.tensor([5]), Stream[name], seed=3) for name in STEPS])
    expected = [
        [-0.4831766188144684, -0.14278973639011383],
        [-0.025137631222605705, -1.0603442192077637],
        [0.015439106151461601, -0.19574035704135895],
        [-0.3582857549190521, -0.02797943912446499],
    ]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=1e-7)


LARGEST = 2**31 - 1
"""Noise steps of the longest schedule whose sampler's noise does not reach the stream of the perturbation."""


@pytest.mark.parametrize("steps", [2, 3, 50, 1000, 4000, LARGEST])
def test_no_two_streams_of_a_network_with_noise_coincide(steps: int) -> None:
    """Ranges of the counter's third word, which has 32 bits: they are disjoint."""
    sampling = range(Stream.sampling(steps, 1), Stream.sampling(steps, steps - 1) + 1)
    start, perturbation = (
        range(word, word + 1) for word in (Stream.start(steps), Stream.PERTURBATION % 2**32)
    )
    ordered = sorted([range(steps), start, sampling, perturbation], key=lambda words: words.start)
    assert all(here.stop <= after.start for here, after in pairwise(ordered))
    assert ordered[-1].stop <= 2**32


def test_no_two_streams_of_a_network_without_noise_coincide() -> None:
    """Such a network adds no noise to images, so that the steps are free for other streams."""
    assert len({value % 2**32 for value in STEPS.values()}) == len(STEPS)
    assert Stream.start(1) == Stream.LATENT


def test_no_stream_in_the_place_of_the_word_coincides_with_another_or_with_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every counter that Philox gets is recorded."""
    counters: list[set[tuple[int, ...]]] = []

    def record(counter: tuple[torch.Tensor, ...], seed: int) -> torch.Tensor:
        words = torch.stack(torch.broadcast_tensors(*counter), -1).flatten(0, -2) % 2**32
        counters.append(set(map(tuple, words.tolist())))
        return philox(counter, seed)

    monkeypatch.setattr(noise, "philox", record)
    index = torch.arange(3)
    for name in WORDS:
        draws(Stream[name], index, seed=0)
    for t in (*STEPS.values(), 2, Stream.start(1000), Stream.sampling(1000, 1)):
        seeded_noise((3, 64, 64), index, t, seed=0)
    assert len(set.union(*counters)) == sum(map(len, counters))
    # an image of 2**30 numbers would still not count up to the first of these streams
    assert min(WORDS.values()) > 2**30


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
    schedule = process_of(config)
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
    schedule = process_of()
    images, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    each = schedule.add_noise(images, torch.tensor([40, 40]), noise)
    assert torch.equal(schedule.add_noise(images, 40, noise), each)
