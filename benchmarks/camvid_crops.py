"""Square crops of CamVid's street scenes by class, as a class folder for `difflens probe`.

Usage: python benchmarks/camvid_crops.py CAMVID OUTPUT_FOLDER [--side 32 --share 0.5 --per-class 200]

A crop is of the class that covers at least a share of it. Crops lie on a grid of half their side. Of each
scene at most `--per-scene` crops of a class are taken, drawn by the seed. All classes get equally many: what
the rarest one has, and at most `--per-class` in training and a third of that in the test. Classes with fewer
than `--least` crops in a split are left out and named. CamVid's training and validation scenes become train/,
its test scenes test/: no scene gives crops to both.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = {"train": ("train", "val"), "test": ("test",)}

Crop = tuple[Path, int, int]
"""The image, and the left and upper edge of the crop in pixels."""


def crops_of(image: Path, mask: np.ndarray, side: int, share: float) -> dict[int, list[Crop]]:
    """Return the crops of an image by class; `mask` is (H, W) uint8, 255 where there is no class."""
    found: dict[int, list[Crop]] = defaultdict(list)
    height, width = mask.shape
    for top in range(0, height - side + 1, side // 2):
        for left in range(0, width - side + 1, side // 2):
            counts = np.bincount(mask[top : top + side, left : left + side].ravel(), minlength=256)[:255]
            label = int(counts.argmax())
            if counts[label] >= share * side**2:
                found[label].append((image, left, top))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=32, help="of a crop, in pixels")
    parser.add_argument("--share", type=float, default=0.5, help="of a crop that its class covers at least")
    parser.add_argument("--per-class", type=int, default=200, help="the most training crops of a class")
    parser.add_argument("--per-scene", type=int, default=4, help="the most crops of a class from one scene")
    parser.add_argument(
        "--least", type=int, default=30, help="crops of a class in each split, or it is left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.out.exists():
        raise SystemExit(f"{asked.out} exists: take another folder")
    classes = (asked.source / "classes.txt").read_text(encoding="utf-8").split("\n")
    draw = random.Random(asked.seed)
    chosen: dict[str, dict[int, list[Crop]]] = {part: defaultdict(list) for part in PARTS}
    for part, folders in PARTS.items():
        for image in sorted(path for each in folders for path in (asked.source / "images" / each).iterdir()):
            mask = np.asarray(Image.open(asked.source / "masks" / image.parent.name / f"{image.stem}.png"))
            for label, crops in sorted(crops_of(image, mask, asked.side, asked.share).items()):
                chosen[part][label] += draw.sample(crops, min(asked.per_scene, len(crops)))
    counts = {label: [len(chosen[part][label]) for part in PARTS] for label in range(len(classes))}
    kept = [label for label, count in counts.items() if min(count) >= asked.least]
    sizes = {
        part: min(most, *(len(chosen[part][label]) for label in kept))
        for part, most in (("train", asked.per_class), ("test", asked.per_class // 3))
    }
    for part, size in sizes.items():
        for label in kept:
            folder = asked.out / part / classes[label].strip()
            folder.mkdir(parents=True)
            for image, left, top in draw.sample(chosen[part][label], size):
                box = (left, top, left + asked.side, top + asked.side)
                Image.open(image).convert("RGB").crop(box).save(folder / f"{image.stem}-{left}-{top}.png")
    print("| class | crops found in training scenes | in test scenes |\n|---|---|---|")
    for label, (train, test) in counts.items():
        if classes[label].strip():
            print(f"| {classes[label].strip()}{'' if label in kept else ' (left out)'} | {train} | {test} |")
    print(f"\nOf each of {len(kept)} classes: {sizes['train']} in train/, {sizes['test']} in test/.")


if __name__ == "__main__":
    main()
