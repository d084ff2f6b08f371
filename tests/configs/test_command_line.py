"""Shown commands parse, and give the configuration that they show."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from difflens.configs.command_line import shown_command
from difflens.configs.options import Options
from difflens.configs.predict import PredictConfig
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.report import ReportConfig
from difflens.configs.segment import SegmentConfig


def parsed(config: Options) -> Any:
    words = shlex.split(shown_command(config))
    assert words[:2] == ["difflens", config.command]
    return tyro.cli(type(config), args=words[2:], config=(tyro.conf.FlagCreatePairsOff,))


def test_the_shown_command_can_be_pasted() -> None:
    config = ProbeConfig(
        out=Path("x"),
        data="my images; rm",
        blocks=(3, 4),
        fresh_noise=False,
        grid=True,
        augment="flip",
        resume=True,
    )
    assert shown_command(config) == (
        "difflens probe --blocks 3 4 --no-fresh-noise --augment flip --data 'my images; rm' --grid --out DIR"
    )
    assert parsed(config) == replace(config, out=Path("DIR"), resume=False)


@pytest.mark.parametrize(
    "config",
    [
        PretrainConfig(data="x", out=Path("DIR"), learned_variance=True, compile=True, min_snr_gamma=5.0),
        SegmentConfig(
            out=Path("DIR"),
            train=(Path("a b"), Path("c")),
            val=(Path("d"), Path("e")),
            classes=Path("f"),
            scale=(0.5, 2.0),
        ),
        ReportConfig(runs=("runs/a", "runs/b"), samples=4, out=Path("a b.html")),
        PredictConfig(model=Path("m"), images=(Path("a.png"), Path("b c.png")), format="json"),
    ],
    ids=lambda config: config.command,
)
def test_every_kind_of_option(config: Options) -> None:
    assert parsed(config) == config
