"""Transfer to scikit-learn's handwritten digits: write them as MNIST-style files, then probe them.

Usage: python benchmarks/digits.py OUTPUT_FOLDER

The 1,797 digits are 8 x 8 grey images of 43 writers. As scikit-learn's users usually do, a stratified random
quarter is the test split (seed 0). Needs scikit-learn.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

RAW = ["--normalise", "none"]
PROBES = {
    "pixels": ["--backbone", "pixels:1x8", "--head", "linear", *RAW],
    "untrained": ["--backbone", "random:fashion", "--head", "linear", *RAW],
    "fashion-knn": ["--head", "knn", *RAW],
    "fashion-linear": ["--head", "linear", *RAW],
    "fashion-attention": ["--head", "attention"],
    "fashion-difformer": ["--head", "difformer"],
}


def write_idx(folder: Path) -> None:
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 becomes 0..255
    parts = train_test_split(
        images, digits.target.astype(np.uint8), test_size=0.25, random_state=0, stratify=digits.target
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1")
    for name, array in zip(names, parts, strict=True):
        header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"{name}-ubyte").write_bytes(header + array.tobytes())


def main(out: Path) -> None:
    write_idx(out / "digits")
    for name, options in PROBES.items():
        command = [
            "probe",
            "--data",
            f"idx:{out / 'digits'}",
            *options,
            "--seeds",
            "3",
            "--out",
            str(out / name),
        ]
        print("difflens", *command, flush=True)
        subprocess.run([sys.executable, "-m", "difflens", *command], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
