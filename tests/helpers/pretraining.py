"""A short run of pre-training, and the files that it leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from difflens import PretrainConfig

Curve = list[tuple[int, int, float, float]]


def config(out: Path, data: Path, **changes: Any) -> PretrainConfig:
    base = PretrainConfig(
        data=str(data),
        out=out,
        preset="tiny",
        epochs=3,
        batch_size=8,
        device="cpu",
        checkpoint_minutes=0.0,
        precision="float32",
        workers=0,
    )
    return replace(base, **changes)


def curve(run: Path) -> Curve:
    """(epoch, step, loss, learning rate) of every line of the log."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(line["epoch"], line["step"], line["loss"], line["learning_rate"]) for line in lines]


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)
