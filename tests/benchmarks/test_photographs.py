"""The benchmark of photographs pairs runs by image and by seed; CamVid's crops are of the class they show."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from benchmarks.camvid_crops import crops_of
from benchmarks.photographs import paired


def predictions(folder: Path, right: list[int]) -> Path:
    folder.mkdir(parents=True)
    rows = [f"{k}.png,cat,{'cat' if each else 'dog'},0.9" for k, each in enumerate(right)]
    (folder / "predictions.csv").write_text("\n".join(["image,class,predicted,probability", *rows]))
    return folder


def test_a_paired_difference_over_images_and_seeds(tmp_path: Path) -> None:
    """Four images: differences 1, 0, 0, 1 with the first seed, and 1, 0, 0, 0 with the second."""
    a = [predictions(tmp_path / "a0", [1, 1, 0, 1]), predictions(tmp_path / "a1", [1, 1, 0, 0])]
    b = [predictions(tmp_path / "b0", [0, 1, 0, 0]), predictions(tmp_path / "b1", [0, 1, 0, 0])]
    mean, half, seeds = paired(a, b)
    assert (mean, seeds) == (0.375, [0.5, 0.25])
    # variances of 1, 0, 0, 1/2 over images, and of 1/2, 1/4 over seeds
    assert half == pytest.approx(1.96 * sqrt(np.var([1, 0, 0, 0.5], ddof=1) / 4 + 0.03125 / 2))
    assert paired(a[:1], b[:1])[0] == 0.5
    assert paired(a, a)[:2] == (0.0, 0.0)


def test_other_images_are_not_paired(tmp_path: Path) -> None:
    a, b = predictions(tmp_path / "a", [1, 0]), predictions(tmp_path / "b", [1, 0, 1])
    with pytest.raises(SystemExit, match="did not score the same images"):
        paired([a], [b])


def test_a_crop_is_of_the_class_that_covers_it() -> None:
    mask = np.full((8, 12), 255, np.uint8)
    mask[:, :6] = 3
    mask[4:, 8:] = 1
    found = crops_of(Path("scene.png"), mask, 4, 0.5)
    corners = {label: [(left, top) for _, left, top in crops] for label, crops in found.items()}
    assert corners[3] == [(0, 0), (2, 0), (4, 0), (0, 2), (2, 2), (4, 2), (0, 4), (2, 4), (4, 4)]
    assert corners[1] == [(8, 2), (6, 4), (8, 4)]
