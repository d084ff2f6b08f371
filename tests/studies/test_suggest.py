"""`suggest` end to end at a small size: its files, its statistics, and the errors that it raises."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from difflens import DiffLensError, FrozenExtractor, SuggestConfig, SuggestResult, load_backbone, suggest
from difflens.backbones.maps import pool_to
from difflens.data.images import to_float
from difflens.data.load import load_unlabelled
from difflens.data.loader import iterate
from difflens.metrics.label_free import high_frequency_share, level_statistics
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.families import write_dit, write_edm, write_flow
from tests.helpers.images import make_image_tree


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images in no arrangement, without labels."""
    tree, folder = make_image_tree(tmp_path / "tree"), tmp_path / "pictures"
    folder.mkdir()
    for number, file in enumerate(sorted(tree.rglob("*.png"))):
        file.rename(folder / f"{number:02}.png")
    return folder


def config(out: Path, backbone: Path | str, images: Path, /, **changes: Any) -> SuggestConfig:
    base = SuggestConfig(
        out=out, backbone=str(backbone), data=str(images), noise_steps=(3, 40), device="cpu", workers=0
    )
    return replace(base, **changes)


def test_a_place_is_suggested_and_shown(backbone_folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", backbone_folder, pictures, limit=20)
    lines: list[str] = []
    result = suggest(run, lines.append)
    (line,) = lines
    assert line.startswith("20 images, 2 noise draws each; 9 blocks at t = 3, 40 (log-SNR ")
    assert result.score.shape == (2, 9)
    assert (result.images, result.passes) == (20, 80)
    best = result.suggestion
    place = (result.noise_steps.index(best.noise_step), result.blocks.index(best.block))
    assert float(result.score[place]) == float(result.score.max()) == best.score
    assert sum(count for *_, count in best.places) == best.halves == 10
    rows = list(csv.DictReader((run.out / "table.csv").open()))
    assert len(rows) == 2 * 9
    cell = next(row for row in rows if (row["noise_step"], row["block"]) == ("40", "5"))
    assert cell["part"] == "middle"
    for name, values in result.statistics.items():
        assert float(cell[name]) == pytest.approx(float(values[1, 4]), rel=1e-4)
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert SuggestResult.from_metrics(metrics, run.out).metrics() == metrics
    assert min(Image.open(run.out / "heatmap.png").size) > 200
    assert f"--blocks {best.block} --noise-steps {best.noise_step}" in result.commands[0]
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    for heading in (
        "Suggested block and noise step",
        "Score by block and noise step",
        "Share of high frequencies",
        "Effective rank",
        "Agreement of two noise draws",
        "CKA with neighbouring blocks",
        "Next commands",
    ):
        assert heading in dom


def test_statistics_are_those_of_the_features_of_two_draws(
    backbone_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    blocks, t = (1, 5, 6), 40
    result = suggest(
        config(tmp_path / "run", backbone_folder, pictures, limit=1000, blocks=blocks, noise_steps=(t,))
    )
    split = load_unlabelled(str(pictures))
    extractor = FrozenExtractor(load_backbone(str(backbone_folder)), blocks, (t,))
    (batch,) = iterate(
        split, channels=3, side=16, batch_size=64, rows=torch.arange(len(split)), augment="none", workers=0
    )
    draws = [extractor(to_float(batch.images), batch.index, draw) for draw in (0, 1)]
    pooled = [[pool_to(maps[block, t], 2).flatten(1) for block in blocks] for maps in draws]
    shares = [torch.stack([high_frequency_share(maps[block, t]) for block in blocks]) for maps in draws]
    expected = level_statistics(*pooled, torch.stack(shares).mean(0))
    assert result.images == len(split) == 51
    for name, values in expected.items():
        torch.testing.assert_close(result.statistics[name][0], values, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("write", "levels"), [(write_flow, (0.1, 0.5)), (write_edm, (0.2, 2.0)), (write_dit, (50,))]
)
def test_every_family_is_read_at_its_own_levels(
    write: Any, levels: tuple[float, ...], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write(tmp_path / "model"), tmp_path / "run"
    words = ("--backbone", folder, "--data", pictures, "--limit", 12, "--workers", 0, "--device", "cpu")
    # latents in a file, which is not left behind
    words = (*words, "--cache-gigabytes", 0)
    assert cli("suggest", *words, "--noise-steps", *levels, "--out", out) == 0
    assert not (out / "cache").exists()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Suggested: "))
    assert "(log-SNR " in line
    found = json.loads((out / "metrics.json").read_text())
    assert found["noise_steps"] == list(levels)
    assert all(type(t) is type(levels[0]) for t in found["noise_steps"])
    assert found["suggested"]["noise_step"] in levels


def test_the_bundled_network_suggests_on_the_bundled_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--backbone", "fashion", "--data", "fashion", "--noise-steps", 5, 20, 80, 200)
    assert cli("suggest", *words, "--limit", 8, "--device", "cpu", "--out", tmp_path / "run") == 0
    assert "Suggested: Block " in capsys.readouterr().out
    assert len((tmp_path / "run" / "table.csv").read_text().splitlines()) == 1 + 4 * 25


def test_a_network_of_clean_images_has_one_draw(pictures: Path, tmp_path: Path) -> None:
    result = suggest(config(tmp_path / "run", "pixels:3x16", pictures, limit=10, noise_steps=None))
    assert result.passes == 10
    assert result.suggestion.agreeing == result.suggestion.halves
    assert result.statistics["draw_agreement"].flatten().tolist() == pytest.approx([1])
    assert result.statistics["neighbour_alignment"].isnan().all()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "10 images, each with 1 noise draw at each noise step" in report


def test_what_cannot_work_says_so(backbone_folder: Path, pictures: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", backbone_folder, pictures)
    with pytest.raises(DiffLensError, match="need at least 8 images, and --limit allows 7"):
        suggest(replace(run, limit=7))
    for number in range(7, 51):
        (pictures / f"{number:02}.png").unlink()
    with pytest.raises(DiffLensError, match=r"need at least 8 images, and .*pictures has 7"):
        suggest(run)
    (pictures / "bad.png").write_bytes(b"?")
    with pytest.raises(DiffLensError, match="need at least 8 images, and 7 could be read"):
        suggest(replace(run, on_bad_image="skip"))
    with pytest.raises(DiffLensError, match="no block 10"):
        suggest(replace(run, blocks=(10,), limit=8))
    assert not run.out.exists()
