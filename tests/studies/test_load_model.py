"""`load_model` on a classifier; the tests of segment and detect have those of masks and boxes."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from difflens import (
    ClassPredictResult,
    DiffLensError,
    PredictConfig,
    ProbeConfig,
    load_model,
    predict,
    probe,
)
from difflens.data.images import read_image, to_float
from tests.helpers.images import make_image_tree


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_tree(tmp_path_factory.mktemp("loaded") / "images")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path, images: Path) -> Path:
    """The run directory of a linear head."""
    run = ProbeConfig(
        out=tmp_path_factory.mktemp("trained") / "run",
        backbone=backbone_folder,
        data=images,
        head="linear",
        blocks=6,
        noise_steps=5,
        epochs=5,
        device="cpu",
        workers=0,
    )
    probe(run)
    return run.out


def test_it_gives_the_probabilities_of_predict(trained: Path, images: Path) -> None:
    model = load_model(str(trained))
    assert (model.task, model.classes) == ("classification", ("blue", "green", "red"))
    paths = sorted((images / "val").rglob("*.png"))
    answers = model(paths)
    predicted = predict(PredictConfig(model=trained, images=images / "val", device="cpu"))
    assert isinstance(predicted, ClassPredictResult)
    expected = [[each.probabilities[name] for name in model.classes] for each in predicted.predictions]
    assert [each.image for each in predicted.predictions] == [str(path) for path in paths]
    torch.testing.assert_close(answers, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_pictures_are_read_when_they_are_needed(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many photographs, those of one batch are in memory."""
    model, paths, read, seen = load_model(trained), sorted(images.rglob("*.png")), list[Path](), list[int]()
    module, inner = sys.modules["difflens.studies.load_model"], model.saved.probabilities  # type: ignore[attr-defined]
    whole = module.pixels_of

    def pixels_of(image: Path, exif: Any) -> Any:
        read.append(image)
        return whole(image, exif)

    def probabilities(batch: torch.Tensor, draws: int) -> torch.Tensor:
        seen.append(len(read))
        return inner(batch, draws)

    monkeypatch.setattr(module, "pixels_of", pixels_of)
    monkeypatch.setattr(model.saved, "probabilities", probabilities)
    assert len(model(path for path in paths)) == len(paths) == 51
    assert seen == [32, 51]


def test_pictures_paths_and_tensors_are_the_same_images(trained: Path, images: Path) -> None:
    model, path = load_model(trained / "model"), images / "val" / "red" / "0.png"
    expected = model(path)
    assert expected.shape == (1, 3)
    pixels = read_image(path)
    several: Any = [Image.open(path), path, str(path), pixels, to_float(pixels)]
    for image in (*several, pixels[None], to_float(pixels[None])):
        assert torch.equal(model(image), expected)
    torch.testing.assert_close(model(several), expected.expand(5, -1), atol=1e-5, rtol=1e-5)
    assert model([]).shape == (0, 3)
    assert not torch.equal(model(path, draws=2), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(3, 8, 8) * 255, r"images lie in .*, and must lie in \[-1, 1\]"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"shape \(4, 8, 8\) is not \(C, H, W\)"),
        (["nowhere.png"], "cannot read image nowhere.png: there is no such file"),
        ([np.zeros((8, 8), np.uint8)], "not ndarray: PIL.Image.fromarray takes arrays"),
        (3, "not int"),
    ],
    ids=["range", "channels", "path", "array", "number"],
)
def test_what_is_no_image_is_refused_by_name(trained: Path, given: Any, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        load_model(trained)(given)


def test_a_model_on_the_hub(
    trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OWNER/NAME is looked for in the hub's cache, as huggingface_hub lays it out."""
    home = tmp_path / "models--somebody--colours"
    shutil.copytree(trained / "model", home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    path = images / "val" / "red" / "0.png"
    assert torch.equal(load_model("somebody/colours")(path), load_model(trained)(path))
    with pytest.raises(DiffLensError, match="no model 'somebody/else': it is no folder here, and the hub"):
        load_model("somebody/else")


@pytest.mark.parametrize("spec", ["nowhere", "./a/b", "/nowhere/b", "a/b/c"])
def test_no_model(spec: str) -> None:
    with pytest.raises(DiffLensError, match=f"no model '{spec}': it is no run directory here"):
        load_model(spec)


def test_a_backbone_is_no_model(backbone_folder: Path) -> None:
    with pytest.raises(DiffLensError, match="is not a difflens model"):
        load_model(backbone_folder)
