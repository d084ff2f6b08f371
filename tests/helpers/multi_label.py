"""Small images with several labels: bands of colour, and a CSV file that names them."""

from pathlib import Path

import torch
from PIL import Image

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


def make_bands(root: Path, train: int = 30, test: int = 14, split: bool = True) -> Path:
    """Return the CSV file of images with any of three bands; about an eighth has none."""
    root.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    lines = ["path,labels,split" if split else "path,labels"]
    for number in range(train + test):
        pixels = torch.randint(0, 40, (16, 16, 3), generator=generator)
        there = [name for name in COLOURS if torch.rand((), generator=generator) < 0.5]
        for k, name in enumerate(COLOURS):
            if name in there:
                pixels[:, 5 * k : 5 * k + 5] += torch.tensor(COLOURS[name]) - 20
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(root / f"{number}.png")
        side = ",train" if number < train else ",test"
        lines.append(f"{number}.png,{'|'.join(there)}{side * split}")
    file = root / "bands.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
