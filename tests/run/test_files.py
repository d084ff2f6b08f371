"""A file that cannot be written is one line that names it, and leaves the earlier file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from difflens.errors import DiffLensError
from difflens.run.directory import RunDirectory
from tests.helpers.cli import run
from tests.helpers.limits import small_files

LARGE = {"values": torch.arange(50_000.0)}


def folder(path: Path) -> None:
    save_file(LARGE, path / "model.safetensors")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda run: run.save_checkpoint(LARGE), "checkpoints/last.pt"),
        (lambda run: run.write_with("step.safetensors", partial(save_file, LARGE)), "step.safetensors"),
        (lambda run: run.write_with("a.png", Image.effect_noise((500, 500), 50).save), "a.png"),
        (lambda run: run.write("a.txt", "x" * 100_000), "a.txt"),
        (lambda run: run.log({"x": "x" * 100_000}), "log.jsonl"),
        (lambda run: run.write_folder("model", folder), "model"),
    ],
    ids=["checkpoint", "safetensors", "picture", "text", "log", "folder"],
)
def test_a_full_disk(tmp_path: Path, write: Callable[[RunDirectory], object], name: str) -> None:
    directory = RunDirectory(tmp_path / "run", "probe", {})
    with small_files(20_000), pytest.raises(DiffLensError) as caught:
        write(directory)
    assert str(caught.value) == f"cannot write {tmp_path / 'run' / name}: File too large"
    assert not [path for path in (tmp_path / "run").rglob("*") if ".partial" in path.name]


@pytest.mark.parametrize(
    "words",
    [
        ["probe", "--head", "mlp", "--width", 512, "--blocks", 6, "--noise-steps", 5],
        ["sweep", "--noise-steps", 5, "--pool", 8],
        ["segment", "--data", "SCENES", "--width", 64],
        ["detect", "--data", "SCENES", "--width", 64],
        ["pretrain", "--preset", "tiny", "--precision", "float32", "--batch-size", 8],
        ["extract", "--noise-steps", 5],
        ["compare", "--protocols", "linear", "--samples", 0],
    ],
    ids=lambda words: words[0],
)
def test_commands(
    words: list[object],
    backbone_folder: Path,
    image_tree: Path,
    scene_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [scene_folder if word == "SCENES" else word for word in words]
    if "--data" not in given:
        given += ["--data", image_tree]
    if words[0] != "pretrain":
        given += ["--backbones" if words[0] == "compare" else "--backbone", backbone_folder]
    if words[0] in ("segment", "detect"):
        given += ["--iterations", 2, "--batch-size", 2, "--workers", 0]
    with small_files(8_000):
        assert run(*given, "--device", "cpu", "--out", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"difflens: error: cannot write {tmp_path / 'run'}")
    advice = ". The shards before it are complete; --resume goes on from there"
    assert line.endswith(f": File too large{advice if words[0] == 'extract' else ''}")
