"""Correspondence without training: warped photographs with known positions, and masks carried between frames.

Usage: python benchmarks/correspondence.py PHOTOGRAPHS FRAMES MASKS CLASSES [options]; `--help` names them.
FRAMES and MASKS are folders of consecutive frames and their masks, such as CamVid's validation images.

1. Each photograph is resized to a square, and a view of it is rendered: a random quadrilateral inside it
   (homography) under another light (gain, offset, gamma). Points of a regular grid of the view are searched
   in the photograph by the cosine of features. PCK@0.1 is the share that is found within a tenth of the side.
2. The mask of frame n is carried to frame n + 1 alone, by the best place of part 1, whose maps are pooled to
   at most 32 cells a side. mIoU is over all pixels of all frames. Two figures bound it: that of the mask of
   frame n as it is, and that of the true mask at the map's resolution.

Networks of one channel read photographs in grey. Pixels are compared as patches of 7 x 7 of the same input.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from difflens import Backbone, FrozenExtractor, load_backbone
from difflens.backbones.maps import pool_to
from difflens.data.dense.base import IGNORED
from difflens.data.dense.masks import read_mask
from difflens.data.files import find_images
from difflens.data.images import read_image, stretch, to_float, with_channels
from difflens.metrics.confusion import confusion_matrix
from difflens.metrics.correspondence import locate, sample, similarity_maps
from difflens.metrics.propagation import carry
from difflens.metrics.segmentation import SegmentationEvaluation
from difflens.studies.explore import spread
from difflens.studies.places import default_levels
from difflens.studies.propagate import one_hot, to_mask

PIXELS = ("pixels:1", "pixels:3")
"""Patches of grey, and of colour."""

_CELLS = 32  # of maps that masks are carried on
_PATCH = 7
_SQUARE = 256  # pixels of photographs and views
_ALPHA = 0.1


def homography(corners: Tensor) -> Tensor:
    """Return the 3 x 3 matrix that maps the unit square's corners to `corners`, (4, 2).

    The corners are upper left, upper right, lower right, lower left.
    """
    unit = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    rows, right = [], []
    for (u, v), (x, y) in zip(unit.tolist(), corners.tolist(), strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        right += [x, y]
    solution = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    )
    return torch.cat([solution, torch.ones(1, dtype=torch.float64)]).reshape(3, 3)


def mapped(matrix: Tensor, points: Tensor) -> Tensor:
    """Return points, (P, 2), after a homography."""
    homogeneous = torch.cat([points.double(), torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
    found = homogeneous @ matrix.T
    return (found[:, :2] / found[:, 2:]).float()


def view_of(photograph: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a view of a photograph, uint8 (C, S, S), and the homography from view to photograph."""
    inward = 0.03 + 0.3 * torch.rand(4, 2, generator=generator)
    signs = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]]) + signs * inward
    matrix = homography(corners)
    side = photograph.shape[-1]
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    places = mapped(matrix, torch.stack([x, y], dim=-1).reshape(-1, 2)).reshape(1, side, side, 2)
    pixels = F.grid_sample(photograph[None].float() / 255, 2 * places - 1, align_corners=False)[0]
    gain, offset, gamma = (
        low + (high - low) * float(torch.rand((), generator=generator))
        for low, high in ((0.6, 1.2), (-0.1, 0.1), (0.7, 1.4))
    )
    lit = (gain * pixels.clamp(min=0) ** gamma + offset).clamp(0, 1)
    return (255 * lit).round().to(torch.uint8), matrix


class Reader:
    """Feature maps of squares at every place; (0, 0) is the only place of pixels."""

    def __init__(self, name: str, side: int, seed: int, blocks: Sequence[int], steps: Sequence[float]):
        self.name, self.side = name, side
        self.extractor: FrozenExtractor | None = None
        self.channels = 3
        if name.startswith("pixels"):
            self.channels = int(name.partition(":")[2] or 3)
            return
        backbone: Backbone = load_backbone(name)
        backbone.check_size(side)
        self.channels = backbone.in_channels
        usual = spread([block.index for block in backbone.blocks], backbone.defaults.block)
        self.extractor = FrozenExtractor(
            backbone, blocks or usual, steps or default_levels(backbone)[:5], seed
        )

    def maps(self, picture: Tensor, index: int) -> dict[tuple[int, float], Tensor]:
        """Return (C, H, W) by place."""
        square = to_float(stretch(picture, self.channels, self.side))[None]
        if self.extractor is None:
            patches = F.unfold(F.pad(square, (_PATCH // 2,) * 4, mode="replicate"), _PATCH)
            return {(0, 0): patches[0].reshape(-1, self.side, self.side)}
        with torch.no_grad():
            return {place: maps[0] for place, maps in self.extractor(square, torch.tensor([index])).items()}


def photographs(asked: argparse.Namespace, reader: Reader) -> dict[tuple[int, float], list[float]]:
    """Return PCK of each photograph, by place."""
    generator = torch.Generator().manual_seed(asked.seed)
    found: dict[tuple[int, float], list[float]] = {}
    steps = (torch.arange(asked.grid) + 0.5) / asked.grid
    points = torch.cartesian_prod(steps, steps)
    for number, path in enumerate(find_images(asked.photographs)[: asked.count]):
        photograph = stretch(with_channels(read_image(path), 3), 3, _SQUARE)
        view, matrix = view_of(photograph, generator)
        true = mapped(matrix, points)
        whole, part = reader.maps(photograph, 2 * number), reader.maps(view, 2 * number + 1)
        for place in whole:
            maps = similarity_maps(sample(part[place], points), whole[place], asked.resolution)
            places, _ = locate(maps)
            near = (places - true).norm(dim=1) <= _ALPHA
            found.setdefault(place, []).append(float(near.float().mean()))
    return found


def frames(asked: argparse.Namespace, reader: Reader | None, place: tuple[int, float]) -> dict[str, float]:
    """Return mIoU of masks that are carried from each frame to the next, by way; without a reader, that of
    masks that stay as they are."""
    classes = tuple(line for line in asked.classes.read_text(encoding="utf-8").split("\n") if line)
    paths = find_images(asked.frames)[: asked.frames_count]
    ways = ("carried", "true at the map's resolution") if reader else ("unchanged",)
    counts = {way: torch.zeros(len(classes), len(classes), dtype=torch.long) for way in ways}
    values = list(range(len(classes)))
    before: tuple[Tensor | None, np.ndarray] | None = None
    for number, path in enumerate(paths):
        mask = read_mask(asked.masks / f"{path.stem}.png")
        features = pool_to(reader.maps(read_image(path), number)[place][None], _CELLS)[0] if reader else None
        if before is not None:
            predicted = {"unchanged": before[1]}
            if features is not None and before[0] is not None:
                labels = one_hot(before[1], values, features)
                moved = carry(features, [before[0]], [labels], radius=asked.radius)
                predicted["carried"] = to_mask(moved, values, mask.shape)
                own = one_hot(mask, values, features)
                predicted["true at the map's resolution"] = to_mask(own, values, mask.shape)
            for way in ways:
                guess = torch.from_numpy(predicted[way].astype(np.int64)).clamp(max=len(classes) - 1)
                counts[way] += confusion_matrix(guess, torch.from_numpy(mask), len(classes), IGNORED)
        before = features, mask
    return {way: SegmentationEvaluation(each, classes).metrics()["miou"] for way, each in counts.items()}


def grid_of(found: Mapping[tuple[int, float], Sequence[float]]) -> list[str]:
    """Return the lines of a table of PCK, one row a block and one column a noise step."""
    blocks, steps = (sorted({place[k] for place in found}) for k in (0, 1))
    lines = [
        f"| block | {' | '.join(f't = {t:g}' for t in steps)} |",
        f"|---|{'---|' * len(steps)}",
    ]
    for block in blocks:
        cells = (f"{100 * np.mean(found[int(block), t]):.1f}" for t in steps)
        lines.append(f"| {block} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photographs", type=Path, help="a folder of photographs")
    parser.add_argument("frames", type=Path, help="a folder of consecutive frames")
    parser.add_argument("masks", type=Path, help="a folder of their masks")
    parser.add_argument("classes", type=Path, help="the names of the masks' values, one a line")
    parser.add_argument(
        "--backbones", nargs="+", default=["fashion", "random:fashion", "pixels:1", "pixels:3"]
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=(), help="of every backbone")
    parser.add_argument("--noise-steps", type=float, nargs="+", default=(), help="of every backbone")
    parser.add_argument("--count", type=int, default=40, help="photographs")
    parser.add_argument("--grid", type=int, default=8, help="points along a side of a view")
    parser.add_argument(
        "--resolution", type=int, default=128, help="positions that are compared along a side"
    )
    parser.add_argument("--side", type=int, default=64, help="of the squares that networks read, in pixels")
    parser.add_argument("--frames-side", type=int, default=128, help="of the squares of part 2")
    parser.add_argument("--frames-count", type=int, default=101)
    parser.add_argument("--radius", type=int, default=4, help="of part 2, in cells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the file of the tables, in Markdown")
    asked = parser.parse_args()
    lines: list[str] = []
    best: dict[str, tuple[int, float]] = {}
    summary = ["| features | best place | PCK@0.1, % | 95 % interval |", "|---|---|---|---|"]
    start = time.process_time()
    for name in asked.backbones:
        reader = Reader(name, asked.side, asked.seed, asked.blocks, [_whole(t) for t in asked.noise_steps])
        found = photographs(asked, reader)
        place = max(found, key=lambda each: np.mean(found[each]))
        best[name] = place
        mean, spread_ = float(np.mean(found[place])), float(np.std(found[place], ddof=1))
        half = 1.96 * spread_ / math.sqrt(len(found[place]))
        where = (
            f"block {place[0]}, t = {place[1]:g}" if reader.extractor else f"patches of {_PATCH} x {_PATCH}"
        )
        interval = f"{100 * (mean - half):.1f} to {100 * (mean + half):.1f}"
        summary.append(f"| {name} | {where} | {100 * mean:.1f} | {interval} |")
        if reader.extractor:
            lines += [f"PCK@0.1 of `{name}`, in per cent:", "", *grid_of(found), ""]
        print(summary[-1], f"{time.process_time() - start:.0f} s of CPU", flush=True)
    carried = ["| features | mIoU, % | bound by the map's resolution, % |", "|---|---|---|"]
    unchanged = frames(asked, None, (0, 0))["unchanged"]
    carried.append(f"| none: the mask of frame n as it is | {100 * unchanged:.1f} | 100.0 |")
    for name, place in best.items():
        blocks, steps = ((), ()) if name.startswith("pixels") else ((place[0],), (place[1],))
        scores = frames(asked, Reader(name, asked.frames_side, asked.seed, blocks, steps), place)
        carried.append(f"| {name} | {' | '.join(f'{100 * score:.1f}' for score in scores.values())} |")
        print(carried[-1], f"{time.process_time() - start:.0f} s of CPU", flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("\n".join([*summary, "", *lines, *carried, ""]), encoding="utf-8")


def _whole(level: float) -> float:
    return int(level) if level == int(level) else level


if __name__ == "__main__":
    main()
