"""Folders of small images."""

from pathlib import Path

import torch
from PIL import Image


def make_image_tree(root: Path, per_class: int = 12, side: int = 16) -> Path:
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", per_class), ("val", 5)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 90, (side, side, 3), generator=generator)
                pixels[..., channel] += 120
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    return root
