"""Levels, log-SNR and directions of time of the noise processes."""

from math import inf, log

import pytest
import torch

from difflens import DiffLensError, process_of, seeded_noise
from difflens.processes.base import NoiseProcess, bracketed, finite, in_words, level_name
from difflens.processes.clean import Clean
from difflens.processes.interpolant import LinearInterpolant

DDPM = process_of()
EDM = process_of({"_class_name": "EDMEulerScheduler"})
VE = process_of({"_class_name": "ScoreSdeVeScheduler"})
FLOW = process_of({"_class_name": "FlowMatchEulerDiscreteScheduler"})
SIT = LinearInterpolant(towards_noise=False)
ALL = [DDPM, EDM, VE, FLOW, SIT]


@pytest.mark.parametrize("process", ALL, ids=lambda process: process.name)
def test_the_log_snr_is_that_of_the_noised_images(process: NoiseProcess) -> None:
    level = process.at(0.2)
    images, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    signal = process.add_noise(images, level, zero) - process.add_noise(-images, level, zero)
    noise = process.add_noise(images, level, images) - process.add_noise(images, level, -images)
    assert process.log_snr(level) == pytest.approx(2 * log(float(signal / noise)), rel=1e-4)


@pytest.mark.parametrize("process", ALL, ids=lambda process: process.name)
def test_shares_of_the_linear_schedule_are_equally_noisy_in_all_processes(process: NoiseProcess) -> None:
    for share in (0.005, 0.05, 0.15, 0.4, 0.9):
        assert process.log_snr(process.at(share)) == pytest.approx(DDPM.log_snr(DDPM.at(share)), abs=0.03)


@pytest.mark.parametrize("process", ALL, ids=lambda process: process.name)
def test_levels_of_a_log_snr(process: NoiseProcess) -> None:
    assert process.log_snr(process.at_log_snr(1.5)) == pytest.approx(1.5, abs=0.03)
    low, high = process.bounds
    assert low <= process.at_log_snr(-50.0) <= high
    assert low <= process.at_log_snr(50.0) <= high


@pytest.mark.parametrize(("step", "message"), [(-5, "outside"), (1000, "outside"), (5.7, "no whole number")])
def test_a_number_that_is_no_step(step: float, message: str) -> None:
    images = torch.zeros(1, 1, 1, 1)
    with pytest.raises(DiffLensError, match=message):
        DDPM.add_noise(images, step, images)


def test_both_directions_of_time() -> None:
    images, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0)
    assert float(FLOW.add_noise(images, 0.25, noise)) == 0.75 * 2 + 0.25 * 5
    assert float(SIT.add_noise(images, 0.25, noise)) == 0.25 * 2 + 0.75 * 5
    assert "t = 1 is pure noise" in FLOW.describe()
    assert "t = 1 is the image" in SIT.describe()
    assert float(FLOW.network_time(torch.tensor([0.25], dtype=torch.float64))) == 250
    assert float(SIT.network_time(torch.tensor([0.25], dtype=torch.float64))) == 0.25
    assert (FLOW.log_snr(0.0), FLOW.log_snr(1.0)) == (inf, -inf)


def test_levels_are_checked_in_the_unit_of_the_process() -> None:
    assert DDPM.check([5, 3.0, 5]) == (3, 5)
    assert all(isinstance(level, int) for level in DDPM.check([3.0]))
    assert EDM.check([1, 0.5]) == (0.5, 1.0)
    assert all(isinstance(level, float) for level in FLOW.check([1]))
    assert Clean().check([0]) == (0,)
    for process, level, message in (
        (DDPM, 0.5, "noise step 0.5 is no whole number"),
        (DDPM, 1000, "has noise steps 0 to 999"),
        (EDM, 0.001, "has noise levels sigma 0.002 to 80"),
        (EDM, float("nan"), "outside"),
        (FLOW, 1.01, "has times 0 to 1"),
        (FLOW, -0.1, "outside"),
    ):
        with pytest.raises(DiffLensError, match=message):
            process.check([level])
    with pytest.raises(DiffLensError, match="noise_steps is empty"):
        FLOW.check([])


@pytest.mark.parametrize("process", ALL, ids=lambda process: process.name)
def test_a_number_outside_the_process_adds_no_noise(process: NoiseProcess) -> None:
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(DiffLensError, match="is outside the schedule"):
        process.add_noise(images, 1e6, images)


def test_noise_is_a_function_of_the_level() -> None:
    index = torch.tensor([3, 8])
    half = seeded_noise((3, 4, 4), index, 0.5, 7)
    assert torch.equal(half, seeded_noise((3, 4, 4), index, torch.tensor([0.5, 0.5]), 7))
    assert torch.equal(half, seeded_noise((3, 4, 4), index, torch.tensor([0.5, 0.5], dtype=torch.float64), 7))
    assert torch.equal(half[1:], seeded_noise((3, 4, 4), index[1:], 0.5, 7))
    assert not torch.equal(half, seeded_noise((3, 4, 4), index, 0.25, 7))
    assert not torch.equal(half, seeded_noise((3, 4, 4), index, 0, 7))


def test_fingerprints_differ_where_features_do() -> None:
    wider = process_of({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0})
    consistency = process_of({"_class_name": "CMStochasticIterativeScheduler"})
    processes = [*ALL, wider, consistency, LinearInterpolant(True)]
    assert len({process.fingerprint() for process in processes}) == len(processes)
    spaced = process_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert spaced.fingerprint() == FLOW.fingerprint()


def test_levels_are_ordered_from_the_least_to_the_most_noise() -> None:
    assert list(DDPM.by_noise((900, 5, 100))) == [5, 100, 900]
    assert list(FLOW.by_noise((0.1, 1.0, 0.5, 0.0))) == [0.0, 0.1, 0.5, 1.0]
    towards_image = LinearInterpolant(towards_noise=False)
    assert list(towards_image.by_noise((0.1, 1.0, 0.5, 0.0))) == [1.0, 0.5, 0.1, 0.0]
    assert towards_image.by_noise((0.0, 1.0)) == {1.0: inf, 0.0: -inf}
    assert FLOW.by_noise((0.5,)) == {0.5: pytest.approx(0)}


def test_levels_have_names_and_words() -> None:
    names = [level_name(level) for level in (50, 50.0, 0.1, 0.123456789, 1e-5)]
    assert names == ["00050", "50.0", "0.1", "0.123456789", "1e-05"]
    assert [float(name) for name in names] == [50, 50, 0.1, 0.123456789, 1e-5]
    assert bracketed(150, 1.24) == "150 (1.2)"
    assert bracketed(0.5, -0.01) == "0.5 (0.0)"
    assert bracketed(0.0, inf) == "0.0 (\u221e)"
    assert bracketed(7, None) == "7"
    assert in_words({5: 7.04, 20: -3.21}) == "5, 20 (log-SNR 7.0, -3.2)"
    assert in_words({5: 7.04, 20: None}) == "5, 20"
    assert (finite(-inf), finite(0.5)) == (None, 0.5)
