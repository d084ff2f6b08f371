"""Sentences about one thing: real commands on as little as they take, and what they say about it."""

import re
from pathlib import Path

import pytest

from difflens.errors import counted, named, plural
from difflens.run.text import a
from tests.helpers.cli import run
from tests.helpers.html import Document
from tests.helpers.images import make_image_tree

# "1 images", "1 training images", but not "1 of 3 images" or "block 1 shows images"
ONE = re.compile(
    r"(?<![\d.,=^-])\b1 (?:(?!of\b|to\b|in\b|at\b|and\b|on\b|is\b)[a-z][a-z-]* ){0,2}?([a-z][a-z-]*s)\b"
)
SINGULAR = {"class", "pass", "process", "axis", "is", "as", "across", "was", "has", "loss", "this", "bias"}


def wrong(text: str) -> list[str]:
    return [found[0] for found in ONE.finditer(text) if found[1] not in SINGULAR]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("on 1 images of", ["1 images"]),
        ("1 training images", ["1 training images"]),
        ("1 epoch, 11 steps", []),
        ("1,001 images, 0.1 images", []),
        ("1 class", []),
        ("1 of 3 images", []),
    ],
)
def test_what_is_wrong_is_found(text: str, found: list[str]) -> None:
    assert wrong(text) == found


def test_words_that_go_with_numbers() -> None:
    assert [counted(number, "class") for number in (0, 1, 2000)] == ["0 classes", "1 class", "2,000 classes"]
    forms = {"image": "images", "box": "boxes", "batch": "batches", "entry": "entries", "epoch": "epochs"}
    assert {noun: plural(noun, 2) for noun in forms} == forms
    assert (named("block", [6]), named("block", [5, 7])) == ("block 6", "blocks 5, 7")


@pytest.mark.parametrize(
    ("noun", "article"),
    [
        *(("linear", "a"), ("mlp", "an"), ("mae", "an"), ("attention", "an"), ("AutoencoderKL", "an")),
        *(("UNet2DModel", "a"), ("LMSDiscreteScheduler", "an"), ("DDPMScheduler", "a"), ("FlowMatch", "a")),
        *(("EulerDiscreteScheduler", "an"), ("HeunDiscreteScheduler", "a"), ("SD3Transformer", "an")),
    ],
)
def test_articles(noun: str, article: str) -> None:
    assert a(noun) == f"{article} {noun}"


SMALL = ("--device", "cpu", "--workers", 0)
DENSE = ("--side", 32, "--noise-steps", 3, "--iterations", 1, "--batch-size", 2, "--width", 8, *SMALL)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image of each of three classes to train on, and five of each to test."""
    return make_image_tree(tmp_path_factory.mktemp("one") / "images", per_class=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, stamps: Path) -> Path:
    """A data set of one scene to train on, and one to validate."""
    folder = tmp_path_factory.mktemp("one") / "scene"
    words = ("--train", 1, "--val", 1, "--size", 32, "--objects", 1, 1, "--scale", 0.4, 0.7)
    assert run("scenes", "--source", stamps, "--out", folder, *words) == 0
    return folder


def check(out: Path, captured: "pytest.CaptureResult[str]") -> None:
    """Check what a command printed and wrote; `out` is its folder."""
    said = captured.out + captured.err
    assert said
    assert wrong(said) == []
    for page in out.rglob("*.html"):
        assert wrong(Document(page.read_text()).text) == [], page
    for page in out.rglob("*.md"):
        assert wrong(page.read_text()) == [], page


@pytest.mark.parametrize(
    "words",
    [
        ("probe", "--head", "mlp", "--epochs", 1, "--batch-size", 1),
        ("probe", "--head", "difformer", "--epochs", 1, "--dry-run"),
        ("probe", "--head", "linear", "--epochs", 1, "--limit", 1, "--seeds", 2),
        ("probe", "--head", "knn", "--blocks", 6, "--noise-steps", 5),
        ("pretrain", "--preset", "tiny", "--epochs", 1, "--batch-size", 1, "--limit", 1),
        ("extract", "--limit", 1, "--blocks", 6, "--noise-steps", 5),
        ("explain", "--count", 1, "--blocks", 6, "--noise-steps", 5, "--neighbours", 1),
        ("explore", "--images", "{one}/val/red/0.png", "--blocks", 6, "--noise-steps", 5, "--cells", 4),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_a_command_on_one_image(
    words: tuple[object, ...],
    backbone_folder: Path,
    one: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = tuple(str(word).format(one=one) for word in words)
    read = () if words[0] == "pretrain" else ("--backbone", backbone_folder)
    data = () if words[0] == "explore" else ("--data", one)
    assert run(*words, *read, *data, *SMALL, "--out", tmp_path / "run") == 0
    check(tmp_path / "run", capsys.readouterr())


@pytest.mark.parametrize("command", ["segment", "detect"])
def test_a_dense_task_on_one_scene(
    command: str, backbone_folder: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (command, "--backbone", backbone_folder, "--data", scene, *DENSE)
    assert run(*words, "--dry-run", "--out", tmp_path / "run") == 0
    assert run(*words, "--out", tmp_path / "run") == 0
    check(tmp_path / "run", capsys.readouterr())


def test_one_sample(
    backbone_folder: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn"
    words = ("--backbone", backbone_folder, "-n", 1, "--steps", 1, "--device", "cpu")
    assert run("generate", *words, "--dry-run", "--out", drawn) == 0
    assert run("generate", *words, "--out", drawn) == 0
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    assert run("report", drawn, "--data", one, "--samples", 1, *SMALL, "--out", page) == 0
    check(tmp_path, capsys.readouterr())


def test_information(backbone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", backbone_folder) == 0
    check(tmp_path, capsys.readouterr())
