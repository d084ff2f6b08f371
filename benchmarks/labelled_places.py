"""A backbone and data, with the accuracy of every place by a full labelled sweep, made once in a folder."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from difflens import FeatureStore, load_backbone
from difflens.data.split import place_in_class
from difflens.metrics.classifiers import held_out_scores

FOLDS = 5
SHARES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the schedule, the noise levels of a sweep


def difflens(*words: object) -> None:
    print("difflens", *words, flush=True)
    subprocess.run([sys.executable, "-m", "difflens", *map(str, words)], check=True)


class LabelledPlaces:
    """The maps of labelled training images at every place, and whether each is classified correctly there.

    What is there is not made again: `difflens extract` writes store/, and correct.pt is the full sweep. It is
    ridge regression at each place in five folds, so that a model that did not see an image judges it.

    Args:
        out, name: the folder is out/name.
        backbone, data: as for `difflens sweep`.
        images: the number of labelled images.

    Attributes:
        correct: (T, B, N) bool.
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
        if not (folder / "correct.pt").exists():
            torch.save(self._correct(images), folder / "correct.pt")
        self.correct: Tensor = torch.load(folder / "correct.pt")
        self.accuracy = 100 * self.correct.double().mean(-1)

    def features(self, t: float, block: int, rows: Tensor) -> Tensor:
        return self.store.maps("train", block, t)[rows].flatten(1).float()

    def _correct(self, images: int) -> Tensor:
        """Return (T, B, N) bool: whether each image is classified correctly by a model of the other folds."""
        place = place_in_class(self.labels)
        rows = (place < max(1, images // self.classes)).nonzero()[:, 0]
        labels, fold = self.labels[rows], place[rows] % FOLDS
        correct = torch.zeros(len(self.steps), len(self.blocks), len(rows), dtype=torch.bool)
        for (i, t), (j, block) in product(enumerate(self.steps), enumerate(self.blocks)):
            features = self.features(t, block, rows)
            for number in range(FOLDS):
                out = fold == number
                scores = held_out_scores("ridge", features, labels, out, out[~out], self.classes)
                correct[i, j, out] = scores.argmax(1) == labels[out]
        return correct


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
