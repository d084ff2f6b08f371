"""A backbone and data, with the accuracy of every place by a full labelled sweep, made once in a folder."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from difflens import FeatureStore, load_backbone
from difflens.data.split import place_in_class
from difflens.metrics.classifiers import RIDGE_STRENGTHS, Standardiser, ridge

SHARES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the schedule, the noise levels of a sweep


def difflens(*words: object) -> None:
    print("difflens", *words, flush=True)
    subprocess.run([sys.executable, "-m", "difflens", *map(str, words)], check=True)


class LabelledPlaces:
    """The maps of labelled training images at every place, and the accuracy of ridge regression there.

    What is there is not made again: `difflens extract` writes store/, and accuracy.pt is the full sweep. Each
    image is judged by the model of all others, in closed form, so that all of them measure.

    Args:
        out, name: the folder is out/name.
        backbone, data: as for `difflens sweep`.
        images: the number of labelled images: the most that the store holds, and that measure.

    Attributes:
        accuracy: (T, B) in per cent.
    """

    def __init__(self, out: Path, name: str, backbone: str, data: str, images: int):
        self.folder = folder = out / name
        loaded = load_backbone(backbone)
        self.blocks = [block.index for block in loaded.blocks]
        self.steps = sorted({*map(loaded.process.at, SHARES)})
        self.default = (loaded.defaults.block, loaded.defaults.noise_step)
        words = ("--backbone", backbone, "--data", data, "--noise-steps", *self.steps, "--device", "cpu")
        self.words = words
        if not (folder / "store" / "metrics.json").exists():
            places = ("--blocks", *self.blocks, "--pool", 2, "--splits", "train", "--limit", images)
            difflens("extract", *words, *places, "--out", folder / "store")
        self.store = FeatureStore(folder / "store")
        self.labels = self.store.labels("train")
        self.classes = int(self.labels.max()) + 1
        if not (folder / "accuracy.pt").exists():
            torch.save(self._left_out_accuracy(images), folder / "accuracy.pt")
        self.accuracy: Tensor = 100 * torch.load(folder / "accuracy.pt")

    def features(self, t: float, block: int, rows: Tensor) -> Tensor:
        return self.store.maps("train", block, t)[rows].flatten(1).float()

    def _left_out_accuracy(self, images: int) -> Tensor:
        """Return the leave-one-out accuracy of ridge regression at each place, (T, B) in [0, 1]."""
        rows = (place_in_class(self.labels) < max(1, images // self.classes)).nonzero()[:, 0]
        labels = self.labels[rows]
        strengths = [len(rows) * strength for strength in RIDGE_STRENGTHS]
        accuracy = torch.zeros(len(self.steps), len(self.blocks), dtype=torch.float64)
        for (i, t), (j, block) in product(enumerate(self.steps), enumerate(self.blocks)):
            features = self.features(t, block, rows)
            models = ridge(Standardiser(features)(features), labels, self.classes, strengths)
            accuracy[i, j] = max(model.left_out_top1 for model in models)
        return accuracy


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
