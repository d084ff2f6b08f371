"""Evaluations and reports of probes that nobody trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from difflens.metrics.classification import Evaluation
from difflens.reports.probe import probe_report
from tests.helpers.html import HOSTILE

CLASSES = ("cat", "dog $\\broken$", HOSTILE)


GRID = [
    {
        "learning_rate": rate,
        "weight_decay": decay,
        "validation_top1": rate + decay,
        "chosen": rate + decay == 0.75,
    }
    for rate in (0.25, 0.5)
    for decay in (0.0, 0.25)
]


NEIGHBOURS = [
    {"k": 1, "validation_top1": 0.5, "top1": 0.51},
    {"k": 20, "validation_top1": 0.625, "top1": 0.6, "chosen": True},
]


def evaluation(seed: int, classes: tuple[str, ...] = CLASSES, skill: float = 1.0) -> Evaluation:
    """An evaluation of 60 images, which lie at every second position of their split."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % len(classes)
    logits = torch.randn(60, len(classes), generator=generator)
    logits[torch.arange(60), labels] += skill
    probabilities = logits.softmax(1)
    ranked = probabilities.argsort(descending=True)[:, :5]
    likelihood = probabilities[torch.arange(60), labels].log()
    return Evaluation(2 * torch.arange(60), labels, ranked, probabilities.amax(1), classes, likelihood)


def report(evaluations: Sequence[Evaluation], epochs: int = 3, **extra: Any) -> tuple[str, list[list[int]]]:
    """The page, and the positions whose images it asked for."""
    asked: list[list[int]] = []

    def examples(rows: Sequence[int]) -> Tensor:
        asked.append(list(rows))
        return torch.full((len(rows), 3, 8, 8), 120, dtype=torch.uint8)

    html = probe_report(
        command="difflens probe --out DIR",
        summary="A linear head on block 6.",
        evaluations=evaluations,
        metrics=[
            {
                **one.metrics(),
                "train_images": 1200,
                "trainable_parameters": 4321,
                "train_seconds": 1.5,
                **extra,
            }
            | ({"seed": 10 + k} if len(evaluations) > 1 else {})
            for k, one in enumerate(evaluations)
        ],
        logs=[[{"epoch": e + 1, "loss": 1 / (e + 1)} for e in range(epochs)] for _ in evaluations],
        examples=examples,
        provenance={"Backbone": "tiny, fingerprint 0123", "Hardware": "2 CPU threads"},
    )
    return html, asked
