"""Images and labels of one's own program, through the commands that take them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difflens import (
    DiffLensError,
    ExtractConfig,
    ProbeConfig,
    SweepConfig,
    data_from_arrays,
    extract,
    load_data,
    probe,
    sweep,
)
from difflens.data.split import ImageData
from difflens.run.directory import read_record

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3
FEW: dict[str, Any] = {"device": "cpu", "workers": 0}


def data(**options: Any) -> ImageData:
    return data_from_arrays((IMAGES[:18], LABELS[:18]), (IMAGES[18:], LABELS[18:]), **options)


def test_all_layouts_are_the_same_data() -> None:
    expected = data()
    assert expected.classes == ("0", "1", "2")
    assert torch.equal(expected.train.image(3), torch.from_numpy(IMAGES[3]).permute(2, 0, 1))
    planes = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    other = data_from_arrays(
        (planes[:18], torch.from_numpy(LABELS[:18]).int()), (planes[18:], LABELS[18:].tolist())
    )
    assert other.fingerprint() == expected.fingerprint()
    grey = data_from_arrays((IMAGES[..., 0], LABELS), (IMAGES[..., 0], LABELS), ["a", "b", "c"])
    assert (grey.train.shape(0), grey.classes) == ((1, 16, 16), ("a", "b", "c"))


def test_several_labels_an_image() -> None:
    several = np.eye(3, dtype=int)[LABELS]
    made = data_from_arrays((IMAGES, several), (IMAGES, several.astype(bool)))
    assert (made.metric, made.multi_label, len(made.classes)) == ("map", True, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, "train: images of float64: they must be uint8"),
        (IMAGES[0], LABELS, r"labels of shape \(24,\) for 16 images"),
        (IMAGES[:, :, :, :2], LABELS, r"images of shape \(24, 16, 16, 2\): they must be"),
        (IMAGES[:0], LABELS[:0], r"images of shape \(0, 16, 16, 3\)"),
        (IMAGES, LABELS[:9], r"labels of shape \(9,\) for 24 images"),
        (IMAGES, LABELS - 1, "labels must be whole numbers from 0"),
        (IMAGES, LABELS / 2, "labels must be whole numbers from 0"),
        (IMAGES, np.stack([LABELS, LABELS], 1), "must be 0 or 1"),
        (IMAGES, np.eye(3)[LABELS], "train and test differ in shape"),
    ],
)
def test_what_cannot_be_right_is_named(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        data_from_arrays((images, labels), (IMAGES, LABELS))
    with pytest.raises(DiffLensError, match="labels are of 3 classes, and 2 are named"):
        data(classes=["a", "b"])
    with pytest.raises(DiffLensError, match="two classes are named 'a', and figures are by name"):
        data(classes=["a", "b", "a"])


def test_commands_take_them_and_record_it(backbone_folder: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"backbone": str(backbone_folder), "pool": 1, **FEW}
    place: dict[str, Any] = {"blocks": (5,), "noise_steps": (20,)}
    probed = probe(
        ProbeConfig(out=tmp_path / "probe", head="linear", epochs=1, **place, **common), data=data()
    )
    assert len(probed.seeds) == 1
    sweep(SweepConfig(out=tmp_path / "sweep", **place, **common), data=data())
    extract(ExtractConfig(out=tmp_path / "store", **place, **common), data=data())
    for name in ("probe", "sweep", "store"):
        record = read_record(tmp_path / name)
        assert (record["data"], record["data_fingerprint"]) == ("arrays", data().fingerprint())
    with pytest.raises(DiffLensError, match="the images were arrays of a program"):
        load_data("arrays")
