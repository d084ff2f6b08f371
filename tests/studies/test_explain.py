"""`explain` end to end at a small size: its pictures, its figures, and the errors that it raises."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens import (
    DiffLensError,
    ExplainConfig,
    FrozenExtractor,
    ProbeConfig,
    TrainedModel,
    explain,
    load_backbone,
    load_data,
    probe,
)
from difflens.backbones.maps import pool_to
from difflens.data.images import to_float
from difflens.data.loader import iterate
from tests.helpers.adm import Adm
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.html import linked
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def probes(backbone_folder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train each head that reads several places, and one head that `explain` refuses."""
    folder, runs = tmp_path_factory.mktemp("probes"), {}
    for head in ("difformer", "linear", "mlp", "mix"):
        runs[head] = folder / head
        probe(
            ProbeConfig(
                out=runs[head],
                backbone=str(backbone_folder),
                data=str(images),
                head=head,
                blocks=(3, 6),
                noise_steps=(3, 40),
                epochs=2,
                device="cpu",
                workers=0,
                width=None if head == "linear" else 16,
                mix="spatial" if head == "mix" else None,
            )
        )
    return runs


def config(out: Path, backbone: Path, images: Path, /, **changes: object) -> ExplainConfig:
    base = ExplainConfig(
        out=out,
        backbone=str(backbone),
        data=str(images),
        count=1,
        noise_steps=(3,),
        blocks=(1,),
        neighbours=3,
        device="cpu",
        workers=0,
    )
    return replace(base, **changes)


def test_the_runs_that_are_read_are_linked(probes: dict[str, Path], images: Path, tmp_path: Path) -> None:
    report = {(probes["linear"] / "report.html").resolve()}
    explain(config(tmp_path / "run", probes["linear"], images, backbone=None, run=probes["linear"]))
    assert linked(tmp_path / "run" / "report.html") == report
    explain(config(tmp_path / "backbone", probes["linear"], images))
    assert linked(tmp_path / "backbone" / "report.html") == report
    again = ProbeConfig(out=tmp_path / "probe", backbone=str(probes["linear"] / "model"), data=str(images))
    probe(replace(again, head="knn", device="cpu", workers=0))
    assert linked(again.out / "report.html") == report


def test_maps_and_neighbours(backbone_folder: Path, images: Path, tmp_path: Path) -> None:
    run = config(
        tmp_path / "run",
        backbone_folder,
        images,
        block=6,
        noise_step=3,
        count=2,
        noise_steps=(3, 40),
        blocks=(1, 5),
    )
    metrics = explain(run).metrics()
    assert json.loads((run.out / "metrics.json").read_text()) == metrics
    assert len(metrics["images"]) == 2
    # the nearest neighbour, found by hand
    data, extractor = load_data(str(images)), FrozenExtractor(load_backbone(str(backbone_folder)), (6,), (3,))
    rows = torch.tensor([data.test.ids.index(name) for name in metrics["images"]])
    vectors = []
    for split, chosen in ((data.train, None), (data.test, rows)):
        batches = iterate(split, channels=3, side=16, batch_size=64, rows=chosen, workers=0)
        maps = torch.cat([extractor(to_float(batch.images), batch.index)[6, 3] for batch in batches])
        vectors.append(torch.nn.functional.normalize(pool_to(maps, 2).flatten(1), dim=1))
    similarity = vectors[1] @ vectors[0].T
    for row, found in enumerate(metrics["neighbours"]):
        assert found[0]["image"] == data.train.ids[int(similarity[row].argmax())]
        assert found[0]["similarity"] == pytest.approx(float(similarity[row].max()), abs=2e-3)
        assert found[0]["similarity"] >= found[2]["similarity"]
    for name in ("components-0", "components-1", "neighbours"):
        assert min(Image.open(run.out / f"{name}.png").size) > 200
    dom, console = open_in_browser(run.out / "report.html")
    assert console == []
    for words in ("Feature maps (PCA)", "Nearest neighbours", metrics["images"][0]):
        assert words in dom


def test_where_difformer_looks(
    probes: dict[str, Path], backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "run", backbone_folder, images, run=probes["difformer"])
    metrics = explain(run).metrics()
    assert metrics["test_images"] == 15
    for t in (3, 40):
        shares = [metrics["attention_shares"][f"block {block}, t = {t}"] for block in (3, 6)]
        assert sum(shares) + metrics["attention_on_cls"][f"t = {t}"] == pytest.approx(1, abs=1e-5)
    assert sum(metrics["logit_shares"].values()) == pytest.approx(1)
    assert {"attention.png", "attention-shares.png"} <= {path.name for path in run.out.glob("*.png")}
    assert "if all tokens had the same" in (run.out / "report.html").read_text()


def test_the_weights_of_the_mix(
    probes: dict[str, Path], backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "run", backbone_folder, images, run=probes["mix"])
    result = explain(run)
    weights = result.metrics()["mix_weights"]
    assert list(weights) == [f"block {b}, t = {t}" for b in (3, 6) for t in (3, 40)]
    learned = TrainedModel.load(probes["mix"]).probe.head.mixture.weights.mean((1, 2))
    assert list(weights.values()) == pytest.approx(learned.tolist())
    assert len({*weights.values()}) == 4  # they are no longer equal
    assert "block 6, t = 40: " in result.summary()
    assert {"mix.png", "attention.png"} <= {path.name for path in run.out.glob("*.png")}
    assert "Weights of the mix" in (run.out / "report.html").read_text()


def test_which_blocks_a_linear_probe_uses(
    probes: dict[str, Path], backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    run = config(tmp_path / "run", backbone_folder, images, run=probes["linear"])
    metrics = explain(replace(run, data=None, backbone=None)).metrics()  # the run says which
    assert metrics["images"][0].startswith("val/")
    with pytest.raises(DiffLensError, match="two test images or more: raise --limit"):
        explain(replace(run, out=tmp_path / "one", limit=1))
    assert list(metrics["logit_shares"]) == [f"block {b}, t = {t}" for b in (3, 6) for t in (3, 40)]
    assert sum(metrics["logit_shares"].values()) == pytest.approx(1)
    # a place whose weights are 0 has no share
    model = TrainedModel.load(probes["linear"])
    with torch.no_grad():
        model.probe.head.classifier.weight[:, : model.probe.head.inputs // 4] = 0
    silent = tmp_path / "silent"
    silent.mkdir()
    model.save(silent)
    shares = explain(config(tmp_path / "other", backbone_folder, images, run=silent)).head.logits
    assert shares["block 3, t = 3"] == 0


def test_the_network_of_a_run_is_read_as_the_run_read_it(images: Path, tmp_path: Path) -> None:
    torch.save(Adm().random_state(), tmp_path / "adm.pt")
    run = ProbeConfig(
        out=tmp_path / "probe",
        backbone=str(tmp_path / "adm.pt"),
        data=str(images),
        num_head_channels=16,
        noise_schedule="squaredcos_cap_v2",
        image_size=16,
        head="linear",
        epochs=1,
        device="cpu",
        workers=0,
    )
    model = probe(run).model
    shown = config(tmp_path / "explained", tmp_path, images, backbone=None, run=run.out)
    explain(shown)
    report = (shown.out / "report.html").read_text()
    assert f"fingerprint {model.fingerprint[:12]}" in report
    assert "squaredcos_cap_v2 betas" in report
    with pytest.raises(DiffLensError, match="data of a run are split as it says: leave out --val-fraction"):
        explain(replace(shown, out=tmp_path / "other", data=None, val_fraction=0.3))


def test_the_command_with_images_of_ones_own(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = images / "val" / "red"
    words = (
        "--backbone",
        "random:timm:test_vit",
        "--data",
        images,
        "--images",
        own,
        "--count",
        2,
        "--device",
        "cpu",
    )
    assert cli("explain", *words, "--out", tmp_path / "x") == 0
    assert "Report:" in capsys.readouterr().out
    found = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert found["images"] == [str(own / "0.png"), str(own / "1.png")]
    assert f"on the given images ({own})." in (tmp_path / "x" / "report.html").read_text()


def test_a_long_class_name_leaves_room_for_the_cosine(
    images: Path, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, titles = tmp_path / "tree", list[str]()
    for split in ("train", "val"):
        (tree / split).mkdir(parents=True)
        (tree / split / "a class of a long name").symlink_to(images / split / "red")
    monkeypatch.setattr("difflens.reports.pictures.shortened", lambda text, _: titles.append(text) or "")
    explain(config(tmp_path / "run", backbone_folder, tree))
    assert all(re.fullmatch(r"a class of … -?\d\.\d\d", title) for title in titles[1:])
    assert max(map(len, titles[1:])) <= 18


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (10,)}, "no block 10"),
        ({"block": 99}, "no block 99"),
        ({"noise_step": 100}, "noise step 100 is outside"),
        ({"images": (Path("/nowhere.png"),)}, "no such file or folder: /nowhere.png"),
        ({"run": Path("/nowhere")}, "no such folder: /nowhere"),
        ({"run": Path("/nowhere"), "data": None}, "does not say what it was trained on"),
        ({"count": 0}, "count is 0"),
    ],
    ids=str,
)
def test_what_cannot_work_says_so(
    backbone_folder: Path, images: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        explain(config(tmp_path / "run", backbone_folder, images, **changes))
    assert not (tmp_path / "run").exists()


def test_a_head_without_attention_or_linear_weights(
    probes: dict[str, Path], backbone_folder: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(DiffLensError, match=r"is mlp: explain shows .* Leave out --run"):
        explain(config(tmp_path / "run", backbone_folder, images, run=probes["mlp"]))
