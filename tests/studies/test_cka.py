"""`cka` end to end at a small size: its values, its files, and the errors that it raises."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from difflens import CkaConfig, DiffLensError, FrozenExtractor, cka, load_backbone, load_data
from difflens.backbones.maps import pool_to
from difflens.data.images import to_float
from difflens.data.load import load_unlabelled
from difflens.data.loader import epoch_order, iterate
from difflens.extractors.cache import Reading
from difflens.metrics.cka import GROUPS, gram
from difflens.metrics.cknna import local_gram
from difflens.models import views
from difflens.results.cka import Representation
from difflens.studies import cka as comparing
from tests.helpers.browser import open_in_browser
from tests.helpers.cka import direct_hsic
from tests.helpers.cli import run as cli
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("images") / "tree", per_class=40)


def config(out: Path, backbone: Path, images: Path, /, **changes: object) -> CkaConfig:
    base = CkaConfig(
        out=out,
        backbone=str(backbone),
        data=str(images),
        limit=119,
        noise_steps=(3, 40),
        device="cpu",
        workers=0,
    )
    return replace(base, **changes)


def test_values_are_those_of_features_read_by_hand(
    backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    result = cka(config(tmp_path / "run", backbone_folder, images, pool=(4, 0), blocks=(2, 8)))
    backbone, split = load_backbone(str(backbone_folder)), load_unlabelled(str(images))
    places = [Representation(0, 2, 3, 4), Representation(0, 8, 40, 4), Representation(0, 8, 40, 0)]
    rows = epoch_order(len(split), 0, 0)[:100]
    total = torch.zeros(3, 3, dtype=torch.float64)
    for group in rows.split(5):
        batch = next(iter(iterate(split, channels=3, side=16, batch_size=64, rows=group, workers=0)))
        maps = FrozenExtractor(backbone, (2, 8), (3, 40))(to_float(batch.images), batch.index)
        vectors = [
            (maps[2, 3].unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))).flatten(1),
            (maps[8, 40].unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))).flatten(1),
            maps[8, 40].flatten(1),
        ]
        total += torch.tensor([[direct_hsic(a, b) for a in vectors] for b in vectors], dtype=torch.float64)
    expected = total / total.diagonal().sqrt() / total.diagonal().sqrt()[:, None]
    values, cknna = result.between(places, places)
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=1e-3)
    # minibatches of five images: each has all others as neighbours
    assert result.neighbours == 4
    torch.testing.assert_close(cknna, values)


def test_neighbours_and_ranks_are_those_of_features_read_by_hand(
    backbone_folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "local_gram", partial(local_gram, neighbours=2))
    result = cka(config(tmp_path / "run", backbone_folder, images, pool=(4,), blocks=(2, 8)))
    backbone, split = load_backbone(str(backbone_folder)), load_unlabelled(str(images))
    total, means, mirrored = torch.zeros(2, 2, dtype=torch.float64), {2: [], 8: []}, {2: [], 8: []}
    for group in epoch_order(len(split), 0, 0)[:100].split(5):
        batch = next(iter(iterate(split, channels=3, side=16, batch_size=64, rows=group, workers=0)))
        extractor = FrozenExtractor(backbone, (2, 8), (40,))
        maps = extractor(to_float(batch.images), batch.index)
        flipped = extractor(to_float(batch.images.flip(-1)), batch.index, draw=1)
        near = []
        for block in (2, 8):
            means[block].append(maps[block, 40].mean((2, 3)))
            mirrored[block].append(flipped[block, 40].mean((2, 3)))
            pooled = pool_to(maps[block, 40], 4)
            near.append(local_gram(pooled, gram(pooled), 2))
        total += torch.tensor([[float((a * b).sum()) for a in near] for b in near], dtype=torch.float64)
    expected = total / total.diagonal().sqrt() / total.diagonal().sqrt()[:, None]
    places = [Representation(0, block, 40, 4) for block in (2, 8)]
    torch.testing.assert_close(result.between(places, places)[1], expected, atol=1e-3, rtol=1e-3)
    for block, parts in means.items():
        shares = torch.linalg.svdvals(torch.cat(parts).double())
        shares = shares / shares.sum() + 1e-7
        (found,) = (r for r in result.geometry if (r.block, r.noise_step) == (block, 40))
        assert found.rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-3)
        assert found.channels == backbone.block(block).channels
        x, y = (normalize(torch.cat(views[block]).double()) for views in (means, mirrored))
        assert found.alignment == pytest.approx(float((x - y).square().sum(1).mean()), rel=1e-3)
        distances = torch.cdist(x, x).square()[~torch.eye(len(x), dtype=torch.bool)]
        assert found.uniformity == pytest.approx(float((-2 * distances).exp().mean().log()), abs=1e-3)


@pytest.mark.parametrize(
    ("limit", "meaning"),
    [(119, "All other images of a minibatch are neighbours here"), (360, "Their CKNNA is above 0")],
)
def test_the_report_says_what_cknna_means(
    backbone_folder: Path, tmp_path: Path, limit: int, meaning: str
) -> None:
    many = make_image_tree(tmp_path / "many", per_class=120)
    run = config(tmp_path / "run", backbone_folder, many, limit=limit, blocks=(1, 6), noise_steps=(3,))
    cka(run)
    report = (run.out / "report.html").read_text()
    assert meaning in report
    assert "0 means unrelated" not in report


def test_every_comparison_is_shown(backbone_folder: Path, images: Path, tmp_path: Path) -> None:
    run = config(
        tmp_path / "run",
        backbone_folder,
        images,
        pool=(4, 1),
        blocks=(1, 4, 6),
        other="random:timm:test_resnet",
    )
    result = cka(run)
    assert len(result.representations) == 2 * 2 * 3 + 5
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert (metrics["images"], metrics["minibatches"]) == (100, GROUPS)
    assert torch.tensor(metrics["cka"]["blocks-t3"]).diagonal() == pytest.approx(torch.ones(3))
    assert torch.tensor(metrics["cka"]["models-t40"]).shape == (3, 5)
    assert torch.tensor(metrics["cknna"]["models-t40"]).shape == (3, 5)
    assert len(metrics["geometry"]) == 2 * 3 + 5
    assert metrics["mirrors"]["3"]["decoder_blocks"] == 1
    rows = list(csv.DictReader((run.out / "table.csv").open()))
    assert len(rows) == 17 * 16 / 2
    for low, value, high in (("low_95", "cka", "high_95"), ("cknna_low_95", "cknna", "cknna_high_95")):
        assert all(float(row[low]) <= float(row[value]) <= float(row[high]) for row in rows)
    pictures = {path.name for path in run.out.glob("*.png")}
    assert {
        "blocks-t3.png",
        "blocks-t40.png",
        "models-t3.png",
        "noise-steps-block6.png",
        "poolings-block6.png",
        "blocks-t3-cknna.png",
    } <= pictures
    assert all(min(Image.open(run.out / name).size) > 200 for name in pictures)
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    for words in (
        "Similarity of blocks",
        "Mirrors",
        "Similarity of noise steps",
        "Similarity of poolings",
        "Similarity of two backbones",
        "CKNNA",
        "Effective rank",
        "100 training images in 20 minibatches",
    ):
        assert words in dom


def test_a_backbone_is_like_itself_and_unlike_its_untrained_copy(
    backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    base = config(
        tmp_path / "same", backbone_folder, images, blocks=(1, 6, 9), noise_steps=(40,), other_noise_step=40
    )
    same = cka(replace(base, other=str(backbone_folder)))
    other = cka(replace(base, other=f"random:{backbone_folder}", out=tmp_path / "other"))
    mine, others = ([Representation(model, b, 40, 16) for b in (1, 6, 9)] for model in (0, 1))
    torch.testing.assert_close(same.between(mine, others)[0], same.between(mine, mine)[0])
    assert float(other.between(mine, others)[0].diagonal().min()) < 0.9


def test_views_are_those_of_all_classes(
    backbone_folder: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = FrozenExtractor(load_backbone(str(backbone_folder)), (6,), (5,))
    split, reading = load_data(str(image_tree)).train, Reading(0, "error", [])
    expected = views.measure_views(reading, extractor, split, torch.arange(0, len(split), 6))
    monkeypatch.setattr(views, "MOST_VIEWED", 6)
    assert views.measure_views(reading, extractor, split, torch.arange(len(split))) == expected


def test_a_second_checkpoint_is_read_with_the_options_of_both(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "sit.pt")
    asked = CkaConfig(out=tmp_path / "run", family="sit", attention_order="new", num_heads=4, image_size=16)
    second = asked.second(str(tmp_path / "sit.pt"))
    assert (second.family, second.attention_order, second.num_heads) == ("sit", "new", 4)
    assert second.image_size is None
    timm = asked.second("random:timm:test_resnet")
    assert timm.family is None
    assert timm.load().in_channels == 3
    (tmp_path / "folder").mkdir()
    asked = replace(asked, tap="adaln", noise_schedule="squaredcos_cap_v2")
    folder = asked.second(str(tmp_path / "folder"))
    assert (folder.tap, folder.noise_schedule, folder.image_size) == ("adaln", "linear", None)


def test_results_repeat(backbone_folder: Path, images: Path, tmp_path: Path) -> None:
    base = config(tmp_path / "a", backbone_folder, images, blocks=(1, 5), noise_steps=(40,))
    first, again = cka(base), cka(replace(base, out=tmp_path / "b", limit=100))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, cka(replace(base, out=tmp_path / "c", seed=1)).values)


def test_the_command(
    backbone_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--backbone",
        backbone_folder,
        "--data",
        images,
        "--limit",
        80,
        "--noise-steps",
        7,
        "--out",
        tmp_path / "x",
    )
    assert cli("cka", *words) == 0
    assert "80 images in 20 minibatches; the widest 95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 79}, r"CKA needs at least 80 images \(20 minibatches of 4\), and --limit allows 79"),
        ({"blocks": (10,)}, "no block 10"),
        ({"noise_steps": (100,)}, "noise step 100 is outside"),
        ({"pool": (-1,)}, "pool is -1; it must be between 0 and 16,384"),
        ({"other": "timm:resnet19"}, "did you mean"),
        ({"other_noise_step": 3}, "name it with --other"),
        ({"other": "pixels", "other_noise_step": 3}, "noise step 3 is outside"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so(
    backbone_folder: Path, images: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        cka(config(tmp_path / "run", backbone_folder, images, **changes))
    assert not (tmp_path / "run").exists()


def test_too_few_images(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"CKA needs at least 80 images .* has 36"):
        cka(config(tmp_path / "run", backbone_folder, image_tree))
