"""`report`: the figures that it takes from each run, and the errors that it raises."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from difflens import (
    DiffLensError,
    FidelityConfig,
    GenerateConfig,
    PretrainConfig,
    ProbeConfig,
    ReportConfig,
    fidelity,
    generate,
    pretrain,
    probe,
    report,
)
from tests.helpers.files import contents
from tests.helpers.html import linked
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pre-train one network, probe it with two heads, generate samples and measure them."""
    root = tmp_path_factory.mktemp("runs")
    tree = make_image_tree(root / "images")
    paths = {name: root / name for name in ("pretrain", "linear", "knn", "generate", "fidelity")}
    folder = pretrain(
        PretrainConfig(
            data=str(tree),
            out=paths["pretrain"],
            preset="tiny",
            epochs=1,
            batch_size=8,
            device="cpu",
            workers=0,
            limit=30,
        )
    ).path
    for head in ("linear", "knn"):
        probe(
            ProbeConfig(
                out=paths[head],
                backbone=str(folder),
                data=str(tree),
                head=head,
                blocks=(6,),
                noise_steps=(5,),
                epochs=2 if head == "linear" else None,
                seeds=2 if head == "linear" else 1,
                device="cpu",
                workers=0,
            )
        )
    generate(
        GenerateConfig(out=paths["generate"], n=5, backbone=str(folder), steps=2, batch_size=5, device="cpu")
    )
    fidelity(
        FidelityConfig(
            samples=paths["generate"],
            data=str(tree),
            features=str(paths["knn"]),
            out=paths["fidelity"],
            workers=0,
            kid_subsets=2,
            device="cpu",
        )
    )
    return {**paths, "images": tree, "model": folder}


def config(folder: Path, *named: Path | str, **changes: object) -> ReportConfig:
    base = ReportConfig(
        runs=tuple(map(str, named)), out=folder / "report.html", samples=4, device="cpu", workers=0
    )
    return replace(base, **changes)


def test_everything_of_one_backbone(runs: dict[str, Path], tmp_path: Path) -> None:
    given = (runs[name] for name in ("generate", "fidelity", "knn", "linear", "pretrain"))
    page = report(config(tmp_path, *given)).path.read_text()
    titles = (
        "Top-1 accuracy by head",
        "Fréchet distance",
        "Generated samples",
        "Memorisation check",
        "Pre-training loss",
    )
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert "knn, block 6 at t = 5" in page
    assert "linear, block 6 at t = 5" in page
    assert "input of the classifier of" in page
    assert "ddim, 2 steps" in page
    assert f"the 30 training images of {runs['images']}, on which it was trained" in page
    assert "Of 4 samples, and of 15 test images" in page
    # runs without a report are not linked
    assert linked(tmp_path / "report.html") == {runs[name] / "report.html" for name in ("knn", "linear")}
    assert linked(runs["linear"] / "report.html") == {
        runs["linear"] / f"seed-{seed}" / "report.html" for seed in (0, 1)
    }
    # the grid of samples, their neighbours, the loss
    assert page.count("data:image/png;base64,") == 3


def test_a_run_alone_and_its_default_file(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["knn"], tmp_path / "knn")
    written = report(config(tmp_path, tmp_path / "knn", out=None)).path
    assert written == tmp_path / "knn" / "backbone.html"
    page = written.read_text()
    assert "4 samples, ddim, steps: 50" in page
    assert "No run of difflens fidelity" in page
    assert f"the 36 training images of {runs['images']}" in page
    assert "on which it was trained" not in page
    with pytest.raises(DiffLensError, match=r"backbone\.html exists: name another file"):
        report(config(tmp_path, tmp_path / "knn", out=None))


def test_a_backbone_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    page = report(config(tmp_path, runs["model"])).path.read_text()
    assert "No run of difflens probe" in page
    assert "--data DATA names them" in page
    with pytest.raises(DiffLensError, match="is no run directory: name the report's file with --out"):
        report(config(tmp_path, runs["model"], out=None))


def test_the_distance_on_request(runs: dict[str, Path], tmp_path: Path) -> None:
    asked = config(tmp_path, runs["generate"], data=str(runs["images"]), features=str(runs["model"]))
    page = report(asked).path.read_text()
    assert "To 15 val images of" in page
    assert "says little of so few" in page
    with pytest.raises(DiffLensError, match="name a run of `difflens generate`"):
        report(replace(asked, runs=(str(runs["knn"]),), out=tmp_path / "other.html"))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ((), "nothing to report on"),
        (("nowhere",), "no backbone 'nowhere'"),
        (("pixels",), "does not generate"),
        (("fidelity",), "a fidelity run alone has no backbone"),
        (("knn", "fashion"), "are of different backbones"),
        (("unfinished",), "unfinished is not finished: `difflens generate` goes on with --resume"),
        (("foreign",), "foreign is a run of sweep; a report reads pretrain, probe"),
        (("older",), "older/metrics.json: space is missing"),
        (("damaged",), "config.yaml: the content is"),
    ],
    ids=str,
)
def test_what_cannot_be_reported_writes_nothing(
    runs: dict[str, Path], tmp_path: Path, named: tuple[str, ...], message: str
) -> None:
    places = {name: tmp_path / name for name in ("unfinished", "foreign", "damaged", "older")}
    for name, text in (("foreign", "command: sweep\n"), ("damaged", "- 1\n")):
        places[name].mkdir()
        (places[name] / "config.yaml").write_text(text)
    shutil.copytree(runs["generate"], places["unfinished"])
    shutil.copytree(runs["fidelity"], places["older"])
    (places["older"] / "metrics.json").write_text("{}")
    (places["unfinished"] / "metrics.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(DiffLensError, match=message):
        report(config(tmp_path, *(({**runs, **places}).get(name, name) for name in named)))
    assert contents(tmp_path) == before
