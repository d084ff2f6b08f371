"""Small real images on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflens import ProbeConfig

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes an ImageFolder tree: tree({"train/cat": 3, ...}) with different PNGs of 12 x 10 noise."""

    def make(folders: dict[str, int], name: str = "pets", suffix: str = ".png") -> Path:
        root = tmp_path / name
        for number, (folder, count) in enumerate(folders.items()):
            (root / folder).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng((number, i)).integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{i}{suffix}")
        return root

    return make


@pytest.fixture
def knn_run(image_tree: Path, tmp_path: Path) -> ProbeConfig:
    """The fastest probe of `image_tree`: k-NN on pixels."""
    return ProbeConfig(
        out=tmp_path / "run",
        backbone="pixels:3x16",
        data=str(image_tree),
        head="knn",
        device="cpu",
        workers=0,
    )
