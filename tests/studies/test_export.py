"""Trained models as ONNX files, run by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difflens import (
    DiffLensError,
    ExportConfig,
    ProbeConfig,
    SegmentConfig,
    TrainedModel,
    export,
    probe,
    segment,
)
from tests.helpers.cli import run

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def answers(file: Path, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


@pytest.mark.parametrize("extractor", ["frozen", pytest.param("feedback", marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_same_probabilities(
    extractor: str, backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    result = probe(
        ProbeConfig(
            backbone=str(backbone_folder),
            data=str(image_tree),
            out=tmp_path / "run",
            extractor=extractor,  # type: ignore[arg-type]
            width=16,
            epochs=1,
            device="cpu",
            workers=0,
        )
    )
    written = export(ExportConfig(model=result.out, file=tmp_path / "model.onnx"))
    assert written.difference <= 1e-4
    assert (written.shape, written.classes) == ((3, 16, 16), result.model.classes)
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    (found,) = answers(tmp_path / "model.onnx", images.numpy())
    expected = TrainedModel.load(result.out).probabilities(images)
    assert np.abs(found - expected.numpy()).max() <= 1e-4
    # an image alone gets the same noise
    (alone,) = answers(tmp_path / "model.onnx", images[3:4].numpy())
    assert np.abs(found[3] - alone[0]).max() <= 1e-5
    assert run("export", result.out, tmp_path / "model.onnx") == 2


@pytest.mark.parametrize(("head", "precision"), [("knn", "float32"), ("linear", "bfloat16")])
def test_k_nn_is_written_and_bfloat16_is_refused(
    head: Any, precision: Any, backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": str(image_tree), "device": "cpu", "workers": 0}
    options |= {} if head == "knn" else {"epochs": 1}
    run = ProbeConfig(
        backbone=str(backbone_folder), out=tmp_path / "run", head=head, precision=precision, **options
    )
    written = ExportConfig(model=probe(run).out, file=tmp_path / "out" / "model.onnx")
    if precision == "float32":
        assert export(written).difference <= 1e-4
        assert answers(written.file, np.zeros((1, 3, 16, 16), np.float32))[0].shape == (1, 3)
        return
    with pytest.raises(DiffLensError, match="in bfloat16, and ONNX files are written in float32: train"):
        export(written)
    assert not [*written.file.parent.glob("*")]


@pytest.mark.parametrize("head", ["upernet", pytest.param("linear", marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_same_masks(
    head: Any, backbone_folder: Path, scene_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"side": 32, "iterations": 2, "batch_size": 4, "device": "cpu", "workers": 0}
    width = {} if head == "linear" else {"width": 16}
    config = SegmentConfig(
        backbone=str(backbone_folder), data=scene_folder, head=head, out=tmp_path / "run", **options, **width
    )
    result = segment(config)
    written = export(ExportConfig(model=result.out, file=tmp_path / "model.onnx"))
    assert written.difference <= 1e-4
    assert (written.shape, written.classes) == ((3, 32, 32), ("background", "bar", "disc"))
    probabilities, masks = answers(tmp_path / "model.onnx", np.zeros((2, 3, 32, 32), np.float32))
    assert probabilities.shape == (2, 3, 32, 32)
    assert np.abs(probabilities.sum(1) - 1).max() <= 1e-5
    assert (masks == probabilities.argmax(1)).all()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="nowhere"):
        export(ExportConfig(model=tmp_path / "nowhere", file=tmp_path / "model.onnx"))
    assert not [*tmp_path.glob("*.onnx*")]
