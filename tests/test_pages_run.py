"""The commands and Python blocks of the pages run, at a small size and in the order of each page."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from difflens import load_data
from difflens.cli import COMMANDS
from difflens.configs.options import hints_of
from tests.helpers.cli import run
from tests.helpers.every import write
from tests.helpers.images import make_image_tree
from tests.helpers.pages import PAGES, ROOT, blocks, commands, named

pytestmark = pytest.mark.slow

SCALE = ROOT / "docs" / "scale.md"
PYTHON = [page for page in PAGES if blocks(page, "python") and page != SCALE]
SHELL = [page for page in PAGES if page.name != "CONTRIBUTING.md" and commands(page)]


@pytest.mark.parametrize("page", PYTHON, ids=named(PYTHON))
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, on the bundled backbone."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_features_inside_other_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets.map` and an actor of a local Ray give the vectors of `extract` to the last bit."""
    pytest.importorskip("ray", reason="`make slow` installs Ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    make_image_tree(tmp_path / "album", per_class=20, side=48)  # 75 images, more than one batch
    names: dict[str, Any] = {}
    try:
        for block in blocks(SCALE, "python"):
            exec(compile(block, SCALE.name, "exec"), names)
        of_ray = sorted(names["in_ray"].take_all(), key=lambda row: row["position"])
    finally:
        names["ray"].shutdown()
    assert run("extract", "album", "--out", "features.npy", "--device", "cpu", "--workers", 0) == 0
    vectors = np.load("features.npy")
    assert vectors.shape == (75, names["extractor"].num_features)
    assert np.array_equal(np.array(names["with_features"]["features"], np.float32), vectors)
    assert np.array_equal(np.stack([row["features"] for row in of_ray]), vectors)
    assert len(list((tmp_path / "features-of-ray").glob("*.parquet"))) > 0


# what makes a command small; the last of two equal options counts
SMALL = {
    "demo": "--train-images 40 --test-images 20 --effort 0.01 --samples 2 --sampling-steps 2",
    "info": "",
    "presets": "",
    "extract": "",
    "suggest": "--limit 12",
    "sweep": "--budget 80",
    "probe": "",
    "predict": "",
    "cka": "--limit 80",
    "compare": "--limit 40 --label-fraction 0.5 --epochs 1 --samples 2",
    "explain": "--limit 20 --count 2",
    "explore": "--count 2 --cells 4",
    "match": "",
    "pretrain": "--preset tiny --epochs 1 --limit 8 --batch-size 4",
    "generate": "-n 4 --batch-size 4",
    "fidelity": "--limit 4 --kid-subsets 2 --kid-subset-size 2",
    "report": "--samples 2",
    "distill": "--epochs 1 --limit 8 --batch-size 4",
    "export": "",
    "scenes": "--train 8 --val 4",
    "segment": "--iterations 2 --batch-size 2 --width 8",
    "detect": "--iterations 2 --batch-size 2 --width 8 --proposals 8",
}

# words of commands that need weights or images which nobody can make
NOT_HERE = {"256x256_diffusion_uncond.pt", "timm:resnet18", "folder:imagenet", "OWNER/NAME"}


def small(words: list[str]) -> list[str]:
    """A command at a small size, on small images where it reads the bundled ones."""
    if "--merge" in words:
        return words
    words = [*words, *SMALL[words[0]].split()]
    if words[0] == "probe" and "knn" not in words:
        words += ["--epochs", "1"]
    if words[0] == "probe" and "--label-fraction" in words:
        words += ["--label-fraction", "0.5"]
    if words[0] == "generate":
        words += ["--steps", "2"]
    given = {"--data", "--store", "--run", "--points", "album"} & {*words}
    if "data" in hints_of(COMMANDS[words[0]]) and not given:
        words += ["--data", "clothes"]
    for number, word in enumerate(words[1:], 1):
        if word == "fashion" and words[number - 1] == "--data":
            words[number] = "clothes"
    if "device" in hints_of(COMMANDS[words[0]]):
        words += ["--device", "cpu"]
    return words


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Path, stamps: Path) -> Path:
    """A working directory that holds a small example of everything that the pages name."""
    monkeypatch.chdir(tmp_path)
    photos = make_image_tree(tmp_path / "my-photos")
    shutil.copytree(photos / "train", tmp_path / "flat")
    shutil.copytree(photos / "val", tmp_path / "album")
    for number, name in enumerate(("photo.jpg", "A.jpg", "B.jpg")):
        image = Image.open(photos / "val" / "red" / f"{number}.png")
        image.resize((160, 240)).save(tmp_path / name)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{path.parts[-3]}"
        for path in sorted(photos.rglob("*.png"))
    ]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,split", *rows]))
    tagged = [row.replace(",red,", ",red|warm,").replace(",green,", ",,") for row in rows]
    (tmp_path / "tagged.csv").write_text("\n".join(["path,labels,split", *tagged]))
    for name in ("network", "google/ddpm-cifar10-32"):
        shutil.copytree(backbone_folder, tmp_path / name)
        DDPMScheduler(num_train_timesteps=1000).save_pretrained(tmp_path / name)
    for name, kind in (("DIT_FOLDER", "DiT"), ("FLOW_FOLDER", "flow"), ("LDM_FOLDER", "LDM")):
        Path(write(kind, tmp_path).spec).rename(tmp_path / name)
    write_clothes(tmp_path)
    shutil.copytree(stamps, tmp_path / "stamps")
    return tmp_path


def write_clothes(root: Path) -> None:
    """140 training and 20 test images, fourteen and two of each class, as a class folder `clothes` and as
    MNIST-style files in `digits`."""
    data = load_data("fashion")
    (root / "digits").mkdir()
    for split, name, each in ((data.train, "train", 14), (data.test, "t10k", 2)):
        assert split.labels is not None
        assert split.pixels is not None
        rows = torch.cat([(split.labels == label).nonzero()[:each, 0] for label in range(10)])
        pixels, labels = split.pixels[rows, 0].numpy(), split.labels[rows].tolist()
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = root / "clothes" / ("train" if name == "train" else "test") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
        shape = b"".join(side.to_bytes(4, "big") for side in pixels.shape)
        images = root / "digits" / f"{name}-images-idx3-ubyte"
        images.write_bytes(bytes([0, 0, 8, 3]) + shape + pixels.tobytes())
        classes = root / "digits" / f"{name}-labels-idx1-ubyte"
        classes.write_bytes(bytes([0, 0, 8, 1]) + shape[:4] + bytes(labels))


@pytest.mark.parametrize("page", SHELL, ids=named(SHELL))
def test_commands_run(page: Path, world: Path) -> None:
    """The commands of a page, one after the other, at a small size."""
    here = [words for words in commands(page) if not NOT_HERE & {*words} and words[0] in COMMANDS]
    assert here
    for words in here:
        assert run(*small(words)) == 0, " ".join(small(words))
