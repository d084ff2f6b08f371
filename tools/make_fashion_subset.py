"""Make the bundled subset of Fashion-MNIST from a folder of its IDX files.

    python tools/make_fashion_subset.py /usr/share/datasets/fashion-mnist

Takes the first 1,000 images of each class of the training file and the first 200 of each class of the test
file, in file order.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from difflens.data.sources.idx import FASHION_CLASSES, read_idx_split

PER_CLASS = {"train": 1000, "test": 200}
ASSET = Path(__file__).parents[1] / "src" / "difflens" / "assets" / "fashion_mnist.npz"


def select(folder: Path) -> dict[str, np.ndarray]:
    """The bundled arrays, uint8: {train,test}_images (N, 28, 28) and {train,test}_labels (N,)."""
    arrays = {}
    for split, count in PER_CLASS.items():
        images, labels = read_idx_split(folder, split)
        firsts = [(labels == label).nonzero()[:count, 0] for label in range(len(FASHION_CLASSES))]
        rows = torch.cat(firsts).sort().values
        arrays[f"{split}_images"] = images[rows, 0].numpy()
        arrays[f"{split}_labels"] = labels[rows].to(torch.uint8).numpy()
    return arrays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with the four gzipped or plain IDX files")
    parser.add_argument("--out", type=Path, default=ASSET)
    arguments = parser.parse_args()
    np.savez_compressed(arguments.out, **select(arguments.folder))
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
