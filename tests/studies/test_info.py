"""`difflens info`: a backbone described without reading an image."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from difflens import DiffLensError, InfoConfig, info, load_backbone
from difflens.studies.info import block_costs
from tests.helpers.cli import run


def test_the_bundled_backbone() -> None:
    result = info(InfoConfig(backbone="fashion"))
    backbone = load_backbone("fashion")
    assert (result.parameters, result.channels, result.image_size) == (4_946_369, 1, 32)
    for described, block in zip(result.blocks, backbone.blocks, strict=True):
        assert (described.index, described.role, described.mirror) == (block.index, block.role, block.mirror)
        assert (described.channels, described.stride) == (block.channels, block.stride)
    assert result.noise is not None
    assert (result.noise.steps, result.noise.scheduler, result.noise.prediction) == (
        1000,
        "DDPMScheduler",
        "epsilon",
    )
    first, last = result.noise.log_snr
    assert first == pytest.approx(float(torch.tensor(1 / 1e-4 - 1).log()), rel=1e-4)  # abar_0 = 1 - 1e-4
    assert last == pytest.approx(-10.12, abs=0.01)
    assert result.generates
    assert result.card is not None


def test_shares_of_the_cost_are_those_of_a_real_pass() -> None:
    """The walk to block k costs what its blocks cost together, and the projection of the time besides."""
    backbone = load_backbone("fashion")
    costs = block_costs(backbone)
    assert sum(costs.values()) == pytest.approx(1)
    counts = []
    for last in (12, 18, 25):
        with FlopCounterMode(display=False) as counter:
            backbone.features(torch.zeros(1, 1, 32, 32), 0, [last])
        counts.append(counter.get_total_flops())
    middle, end = (sum(costs[k] for k in range(1, last + 1)) for last in (18, 25))
    assert (counts[1] - counts[0]) / (counts[2] - counts[0]) == pytest.approx(
        (middle - sum(costs[k] for k in range(1, 13))) / (end - sum(costs[k] for k in range(1, 13))), rel=1e-6
    )


@pytest.mark.parametrize("spec", ["pixels:1x28", "random:timm:test_resnet", "random:fashion"])
def test_every_family(spec: str) -> None:
    result = info(InfoConfig(backbone=spec))
    assert (result.noise is None) == (spec != "random:fashion")
    assert result.summary().startswith(spec)


def test_a_folder_without_a_scheduler_says_that_the_schedule_is_assumed(
    backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((backbone_folder / name).read_bytes())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A network\n")
    assert run("info", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "no scheduler file was read" in printed
    assert "mit" in printed


def test_json(backbone_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", backbone_folder, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["image_size"] == 16
    assert record["noise"]["steps"] == 100
    assert [block["role"] for block in record["blocks"]] == ["encoder"] * 4 + ["middle"] + ["decoder"] * 4


def test_what_is_not_there() -> None:
    with pytest.raises(DiffLensError, match=r"no backbone 'nowhere\.pt'"):
        info(InfoConfig(backbone="nowhere.pt"))
