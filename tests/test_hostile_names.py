"""Names from data go through every output as plain words: terminal, HTML, Markdown, CSV, JSON, pictures."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflens.extractors.store import FeatureStore
from difflens.run.text import on_disk
from tests.helpers.cli import run

# markup, a formula, HTML, a table's bar, mathematics, an emoji's code, a colour, bytes that are not UTF-8
CLASSES = ("[b]", "=1+1|<x-bad>&$\\nosuch$", "_:smile:\udcff\x1b[31m`")
DENSE = ["[/b]", '=1+1|<x-bad a="b">', "$\\nosuch$ _:smile:\ud800\x1b[31m\r`"]
IMAGE = "-{}[i]|$x$<x-bad>\udcfe.png"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Path:
    """data[i]$x$/, a folder of images, and net[i]|$x$/, a backbone."""
    root = tmp_path_factory.mktemp("hostile")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 40), ("val", 5)):
        for channel, name in enumerate(CLASSES):
            folder = root / "data[i]$x$" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 90, (16, 16, 3), generator=generator)
                pixels[..., channel] += 120
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / IMAGE.format(number), "PNG")
    shutil.copytree(backbone_folder, root / "net[i]|$x$")
    return root


@pytest.fixture(scope="module")
def probed(hostile: Path) -> Path:
    common = (*source(hostile), "--blocks", 6, "--noise-steps", 5, "--epochs", 1)
    assert run("probe", *common, "--head", "linear", "--out", hostile / "run[i]$x$") == 0
    return hostile / "run[i]$x$"


@pytest.fixture
def dense(scene_folder: Path, tmp_path: Path) -> Path:
    """Scenes whose classes have other names."""
    folder = tmp_path / "scenes[i]$x$"
    shutil.copytree(scene_folder, folder)
    for path in (folder / "annotations").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for category, name in zip(content["categories"], DENSE, strict=False):
            category["name"] = name
        path.write_text(json.dumps(content), encoding="utf-8")
    names = folder / "classes.txt"
    count = len(names.read_text(encoding="utf-8").splitlines())
    lines = [name.replace("\ud800", "").replace("\r", "") for name in DENSE[:count]]
    names.write_text("\n".join(lines), encoding="utf-8")
    return folder


def source(hostile: Path) -> tuple[object, ...]:
    return "--backbone", hostile / "net[i]|$x$", "--data", hostile / "data[i]$x$", "--device", "cpu"


def check(folder: Path, printed: str) -> None:
    """What a command printed, and every text file that it wrote."""
    printed.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", printed)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if path.suffix in (".html", ".md", ".csv", ".json", ".jsonl", ".yaml"):
            text = path.read_bytes().decode("utf-8")
            if path.suffix == ".html":
                assert "<x-bad" not in text
                assert "&lt;x-bad" in text or "x-bad" not in text
            elif path.suffix == ".md":
                assert not re.search(r"(?<![\\`])<x-bad", re.sub("`[^`]*`", "", text))
                table = [line for line in text.splitlines() if line.startswith("| ")]
                assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
            elif path.suffix == ".csv":
                check_csv(text)
            elif path.suffix == ".json":
                json.loads(text)


def check_csv(text: str) -> None:
    for cell in (cell for row in csv.reader(io.StringIO(text)) for cell in row):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or float(cell) < 0


def test_probe_and_its_resumption(probed: Path, hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(probed, capsys.readouterr().out)
    again = (*source(hostile), "--blocks", 6, "--noise-steps", 5, "--epochs", 1, "--head", "linear")
    assert run("probe", *again, "--out", probed, "--resume") == 0
    classes = json.loads((probed / "model" / "config.json").read_text(encoding="utf-8"))["classes"]
    assert sorted(classes) == sorted(map(on_disk, CLASSES))


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_predict(
    probed: Path, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    capsys.readouterr()
    assert run("predict", probed, hostile / "data[i]$x$" / "val", "--format", form) == 0
    printed = capsys.readouterr().out
    check(tmp_path, printed)
    assert "x-bad" in printed
    assert "[b]" in printed
    if form == "csv":
        check_csv(printed)
    elif form == "json":
        assert {label for each in json.loads(printed) for label in each["probabilities"]} == {
            *map(on_disk, CLASSES)
        }
    else:
        assert ":smile:" in printed


def test_an_image_that_cannot_be_read(
    probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "[b]\udcff\x1b[31m.png"
    bad.write_bytes(b"?")
    capsys.readouterr()
    assert run("predict", probed, bad) == 2
    assert "[b]\\udcff\\x1b[31m.png" in capsys.readouterr().err


def test_extract_and_a_probe_of_the_store(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    assert run("extract", *source(hostile), "--blocks", 6, "--noise-steps", 5, "--out", out) == 0
    assert {name.split("/")[1] for name in FeatureStore(out).ids("val")} == {*map(on_disk, CLASSES)}
    probe = ("probe", *source(hostile), "--blocks", 6, "--noise-steps", 5, "--head", "linear", "--epochs", 1)
    assert run(*probe, "--store", out, "--out", tmp_path / "run") == 0
    check(tmp_path, capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "--noise-steps", 5, "--blocks", 6, 7],
        ["compare", "--protocols", "knn", "--samples", 0],
        ["cka", "--limit", 80, "--noise-steps", 5, "--blocks", 6, 7],
        ["probe", "--head", "knn", "--seeds", 2, "--blocks", 6, "--noise-steps", 5],
    ],
    ids=lambda words: words[0],
)
def test_studies(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[object]
) -> None:
    given = [
        f"{word}s" if words[0] == "compare" and word == "--backbone" else word for word in source(hostile)
    ]
    assert run(*words, *given, "--out", tmp_path / "out[i]$x$") == 0
    check(tmp_path, capsys.readouterr().out)


def test_explain_fidelity_and_report(
    probed: Path, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    data = hostile / "data[i]$x$"
    assert run("explain", "--run", probed, "--data", data, "--limit", 8, "--out", tmp_path / "explained") == 0
    samples, space = data / "val" / CLASSES[0], ("--features", probed, "--kid-subset-size", 5)
    assert run("fidelity", "--samples", samples, "--data", data, *space, "--out", tmp_path / "distance") == 0
    assert run("report", probed, "--out", tmp_path / "report.html") == 0
    check(tmp_path, capsys.readouterr().out)


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_dense_tasks(
    dense: Path, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    backbone = ("--backbone", hostile / "net[i]|$x$", "--device", "cpu")
    size = ("--iterations", 1, "--batch-size", 2, "--width", 16, "--side", 32, "--workers", 0)
    assert run(task, *backbone, "--data", dense, *size, "--out", tmp_path / "run") == 0
    image = tmp_path / "[i]$x$.png"
    shutil.copy(next((dense / "images" / "val").iterdir()), image)
    assert run("predict", tmp_path / "run", image, "--out", tmp_path / "predicted") == 0
    check(tmp_path / "run", capsys.readouterr().out)
    check(tmp_path / "predicted", "")
