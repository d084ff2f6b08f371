"""A finished pre-training becomes a bundled network with a complete model card."""

import re
from pathlib import Path

import pytest
from tools.bundle import bundle

from difflens import (
    FidelityConfig,
    GenerateConfig,
    InfoConfig,
    fidelity,
    generate,
    info,
    load_backbone,
    pretrain,
)
from difflens.backbones import load
from difflens.pretraining.export import card_fact
from tests.helpers.images import make_image_tree
from tests.helpers.pretraining import config

Runs = tuple[Path, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run directories of a pre-training and of the distance of its samples."""
    root = tmp_path_factory.mktemp("runs")
    tree = make_image_tree(root / "photographs")
    pretrain(config(root / "run", tree, epochs=1))
    model = str(root / "run" / "model")
    generate(GenerateConfig(backbone=model, n=4, steps=2, device="cpu", out=root / "samples"))
    fidelity(
        FidelityConfig(
            samples=root / "samples",
            data=str(tree),
            features="pixels:3x16",
            device="cpu",
            out=root / "distance",
        )
    )
    return root / "run", root / "distance"


def bundled(runs: Runs, assets: Path) -> Path:
    run, distances = runs
    return bundle(run, "made", "36 squares, made by a test", "mit", "a CPU of a test", distances, assets)


def test_a_bundled_network(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundled(runs, tmp_path)
    monkeypatch.setattr(load, "_ASSETS", tmp_path)
    monkeypatch.setattr(load, "BUNDLED", ("made",))
    assert load.bundled_for(3) == "made"
    assert load_backbone("made").fingerprint() == load_backbone(str(runs[0] / "model")).fingerprint()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert str(runs[0].parent) not in card
    assert "--data photographs" in card
    assert "| hardware | a CPU of a test, float32 |" in card
    assert card_fact(str(folder), "images") == "36 squares, made by a test"
    (distance,) = (line for line in card.splitlines() if line.startswith("| Fréchet distance |"))
    assert re.search(r"\| [\d.]+ between 4 samples and 15 .* pixels:3x16, block 1", distance)
    assert info(InfoConfig(backbone=str(folder))).licence == "mit"
    assert {path.name for path in folder.glob("*.png")} == {"loss.png", "samples.png"}


def test_what_is_not_bundled(runs: Runs, tmp_path: Path) -> None:
    bundled(runs, tmp_path)
    with pytest.raises(SystemExit, match="made exists"):
        bundled(runs, tmp_path)
    tree = runs[0].parent / "photographs"
    short = config(tmp_path / "short", tree, epochs=2, max_minutes=0.0)
    pretrain(short)
    with pytest.raises(SystemExit, match=r"has trained \d of 2 epochs"):
        bundled((short.out, runs[1]), tmp_path / "other")
    other = config(tmp_path / "run", tree, epochs=1, seed=1)
    pretrain(other)
    with pytest.raises(SystemExit, match="did not measure samples of"):
        bundled((other.out, runs[1]), tmp_path / "other")
