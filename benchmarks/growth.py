"""How time and memory grow with images, side, blocks, noise levels, classes and annotations.

Usage: python benchmarks/growth.py --out DIR --photos cifar10 [--rows images classes] [--first 2]

Every point is a process of its own, one thread, whose peak resident memory no other point hides. Times are
medians of seconds that the CPU worked for the process, so other work beside it matters little. The row
`images` extracts a vector for each image, `classes` trains and evaluates a head, and `annotations` reads
COCO's JSON; side, blocks and levels read the maps of a batch. DIR gets growth.json and a figure for each row.
"""

import json
import math
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import psutil
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from difflens.reports.style import BASELINE, INK, KINDS, LINE, TEXT_WIDTH, quiet

Row = Literal["images", "side", "blocks", "levels", "classes", "annotations"]
ROWS: tuple[Row, ...] = get_args(Row)

SIZES: dict[Row, tuple[int, ...]] = {
    "images": (1_000, 4_000, 16_000, 60_000),
    "side": (32, 64, 128, 256),
    "blocks": (1, 2, 4, 8, 13),
    "levels": (1, 2, 4, 8, 16),
    "classes": (10, 100, 1_000, 10_000),
    "annotations": (1_000, 10_000, 100_000, 1_000_000),
}
SERIES: dict[Row, tuple[str, ...]] = {
    "images": ("vectors of block 6",),
    "side": ("block 13",),
    "blocks": ("the last so many", "the first so many"),
    "levels": ("block 13",),
    "classes": ("linear", "knn"),
    "annotations": ("boxes", "boxes and masks"),
}
AXES: dict[Row, str] = {
    "images": "images",
    "side": "side of the image, pixels",
    "blocks": "blocks that are read",
    "levels": "noise levels",
    "classes": "classes",
    "annotations": "annotations",
}
BATCH = 16
"""Images of a batch, in side, blocks and levels."""
TRAINING, TEST = 10_000, 10_000
"""Images in classes: one of each class, where there are 10,000."""
PER_IMAGE = 7
"""Annotations of an image, as in COCO."""
LONG = 60.0
"""Seconds from which on a point is measured once."""
MIB = 2**20


@dataclass
class Config:
    """How time and memory grow with images, side, blocks, noise levels, classes and annotations."""

    out: Path
    """Folder of the figures and of growth.json; other rows that were measured there before stay."""
    photos: Path = Path("cifar10")
    """A folder of at least 60,000 small images, in any subfolders."""
    rows: tuple[Row, ...] = ROWS
    first: int | None = None
    """Measure so many sizes of each row, the smallest. (default: all)"""
    repetitions: int = 3
    """Processes of a point, if one takes less than a minute."""


@dataclass
class Point:
    """One measurement.

    Attributes:
        seconds: of the CPU, median over repetitions.
        start, peak: resident memory before the work and at its most, MiB.
        more: further figures.
    """

    row: Row
    series: str
    size: int
    seconds: float
    start: float
    peak: float
    more: dict[str, float] = field(default_factory=dict)


def main(config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / "growth.json"
    points = [Point(**each) for each in json.loads(file.read_text())] if file.exists() else []
    points = [point for point in points if point.row not in config.rows]
    for row in config.rows:
        for series in SERIES[row]:
            for size in SIZES[row][: config.first]:
                points.append(measured(row, series, size, config))
                print(line(points[-1]), flush=True)
                file.write_text(json.dumps([asdict(each) for each in points], indent=1))
        draw([row], points).savefig(config.out / f"{row}.png", dpi=110)
    every = [row for row in ROWS if any(point.row == row for point in points)]
    draw(every, points).savefig(config.out / "growth.png", dpi=80)


def line(point: Point) -> str:
    more = "".join(f", {name} {value:,.1f}" for name, value in point.more.items())
    return (
        f"{point.row}, {point.series}, {point.size:,}: {point.seconds:.3f} s, "
        f"{point.start:.0f} to {point.peak:.0f} MiB{more}"
    )


def measured(row: Row, series: str, size: int, config: Config) -> Point:
    """Measure a point in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(row, series, size, Path(folder), config)
        found: list[dict[str, Any]] = []
        while len(found) < config.repetitions and (not found or found[-1]["wall"] < LONG):
            words = [row, series, str(size), folder, str(len(found)), str(config.photos.absolute())]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "measure", *words], stdout=subprocess.PIPE, text=True, check=True
            )
            result = json.loads(done.stdout.splitlines()[-1])
            found.append({**result, "wall": time.monotonic() - began})
        middle = {
            name: statistics.median(each[name] for each in found) for name in ("seconds", "start", "peak")
        }
        return Point(row, series, size, **middle, more=found[0]["more"])


def prepare(row: Row, series: str, size: int, folder: Path, config: Config) -> None:
    """Write the data of a point."""
    if row == "annotations":
        write_coco(folder, "train", size, series == "boxes and masks")
        write_coco(folder, "val", PER_IMAGE, series == "boxes and masks")
    elif row == "classes":
        photos = sorted(config.photos.absolute().rglob("*.jpg"))
        random.Random(0).shuffle(photos)
        lines = ["path,label,split"]
        for k, photo in enumerate(photos[: TRAINING + TEST]):
            lines.append(f"{photo},class {k % size:05d},{'train' if k < TRAINING else 'test'}")
        (folder / "images.csv").write_text("\n".join(lines) + "\n")


def write_coco(folder: Path, split: str, count: int, masks: bool) -> None:
    """Write a split of `count` annotations, an ellipse of 15 points each; all images are one photograph."""
    draws, images = random.Random(0), max(1, count // PER_IMAGE)
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / split).mkdir()
    Image.new("RGB", (640, 480)).save(folder / "photo.jpg")
    outline = [(math.cos(2 * math.pi * k / 15), math.sin(2 * math.pi * k / 15)) for k in range(15)]
    with (folder / f"annotations/instances_{split}.json").open("w") as file:
        entries = []
        for k in range(images):
            name = f"{k:012d}.jpg"
            (folder / split / name).symlink_to(folder / "photo.jpg")
            entries.append({"file_name": name, "height": 480, "width": 640, "id": k + 1})
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(80)]
        file.write(
            f'{{"images": {json.dumps(entries)}, "categories": {json.dumps(categories)}, "annotations": ['
        )
        for k in range(count):
            width, height = draws.uniform(20, 180), draws.uniform(20, 180)
            left, top = draws.uniform(0, 640 - width), draws.uniform(0, 480 - height)
            entry = {
                "id": k + 1,
                "image_id": draws.randrange(images) + 1,
                "category_id": k % 80 + 1,
                "bbox": [round(each, 2) for each in (left, top, width, height)],
                "area": round(width * height * math.pi / 4, 2),
                "iscrowd": 0,
            }
            if masks:
                points = [(left + width * (1 + x) / 2, top + height * (1 + y) / 2) for x, y in outline]
                entry["segmentation"] = [[round(value, 2) for point in points for value in point]]
            file.write((", " if k else "") + json.dumps(entry))
        file.write("]}")


def measure(row: Row, series: str, size: int, folder: Path, number: int, photos: Path) -> dict[str, Any]:
    """Do the work of a point in this process."""
    import torch

    torch.set_num_threads(1)
    work = {"images": images, "classes": classes, "annotations": annotations}.get(row)
    if work is not None:
        seconds, start, more = work(series, size, folder / str(number), photos)
    else:
        seconds, start, more = maps(row, series, size)
    return {"seconds": seconds, "start": start, "peak": peak(), "more": more}


def resident() -> float:
    """Return the resident memory of this process, MiB."""
    return psutil.Process().memory_info().rss / MIB


def peak() -> float:
    """Return the largest resident memory that this process had, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith("VmHWM")) / 1024


def images(series: str, size: int, out: Path, photos: Path) -> tuple[float, float, dict[str, float]]:
    """Write the vectors of block 6 of `photos` at t = 50."""
    from difflens import ExtractConfig, extract

    asked = ExtractConfig(
        photos=photos,
        out=out.with_suffix(".npy"),
        backbone="photos",
        blocks=(6,),
        noise_steps=(50,),
        limit=size,
        workers=0,
    )
    start, began = resident(), time.process_time()
    extract(asked)
    return time.process_time() - began, start, {}


def maps(row: Row, series: str, size: int) -> tuple[float, float, dict[str, float]]:
    """Read a batch of random images."""
    import torch

    from difflens import FeatureExtractor

    last = SIZES["blocks"][-1]
    places = {
        "side": ((last,), (50,)),
        "levels": ((last,), tuple(range(10, 10 + 10 * size, 10))),
        "blocks": (
            tuple(range(1, size + 1) if "first" in series else range(last - size + 1, last + 1)),
            (50,),
        ),
    }
    side = size if row == "side" else 32
    extractor = FeatureExtractor("photos", *places[row], image_size=side)
    batch = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    start, seconds = resident(), []
    for _ in range(6):
        began = time.process_time()
        extractor.pooled(batch)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:]), start, {}


def classes(series: str, size: int, out: Path, photos: Path) -> tuple[float, float, dict[str, float]]:
    """Train and evaluate a head on 768 numbers an image, pixels averaged to 16 x 16, for two epochs."""
    from difflens import ProbeConfig, probe

    asked = ProbeConfig(
        data=str(out.parent / "images.csv"),
        backbone="pixels:3x32",
        head=series,  # type: ignore[arg-type]
        pool=16,
        out=out,
        workers=0,
        epochs=2 if series == "linear" else None,
    )
    start, began = resident(), time.process_time()
    probe(asked)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return time.process_time() - began, start, {"written, MB": written / 1e6}


def annotations(series: str, size: int, out: Path, photos: Path) -> tuple[float, float, dict[str, float]]:
    """Read a COCO file, then all objects in a process that is forked."""
    from difflens.data.dense.coco import load_coco

    start, began = resident(), time.process_time()
    split = load_coco(out.parent).train
    seconds = time.process_time() - began
    held = resident() - start
    table = split.table
    parts = (table.rows, table.order, table.starts)
    more = {
        "bytes an annotation": sum(each.nbytes for each in parts) / size,
        "bytes a mask": table.masks.nbytes / size,
        "held, MiB": held,
    }
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=read_objects, args=(split, sender))
    worker.start()
    more["own memory of a loader process, MiB"] = receiver.recv()
    worker.join()
    return seconds, start, more


def read_objects(split: Any, sender: Any) -> None:
    """Read the objects of all images, and send the memory that this process came to own by it, MiB."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    for row in range(len(split)):
        split.target(row, masks=False)
    sender.send((process.memory_full_info().uss - before) / MIB)


def draw(rows: list[Row], points: list[Point]) -> Figure:
    """Draw CPU seconds and peak memory of each row; a dotted line grows in proportion to the size."""
    matplotlib.rcParams["font.size"] = 8
    figure = Figure(figsize=(TEXT_WIDTH, 2.3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), row in zip(panels, rows, strict=True):
        mine = [point for point in points if point.row == row]
        curves(left, row, mine, lambda point: point.seconds)
        curves(right, row, mine, lambda point: point.peak)
        left.set_yscale("log")
        right.set_ylim(0, 1.1 * max(point.peak for point in mine))
        left.set_ylabel("CPU seconds", color=INK)
        right.set_ylabel("peak memory, MiB", color=INK)
        left.legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def curves(axes: Axes, row: Row, points: list[Point], value: Callable[[Point], float]) -> None:
    for series, colour in zip(SERIES[row], KINDS, strict=False):
        mine = [point for point in points if point.series == series]
        sizes, values = [point.size for point in mine], [value(point) for point in mine]
        axes.plot(sizes, values, "o-", color=colour, linewidth=1.4, markersize=3, label=series)
    power = 2 if row == "side" else 1
    first, last = mine[0], mine[-1]
    if value(first) == first.seconds:
        end = first.seconds * (last.size / first.size) ** power
        title = "as the pixels" if power == 2 else "in proportion"
        axes.plot(
            [first.size, last.size], [first.seconds, end], ":", color=BASELINE, linewidth=1.2, label=title
        )
    axes.set_xscale("log")
    ticks = sorted({point.size for point in points})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel(AXES[row], color=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    quiet(axes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        name, series, size, folder, number, photos = sys.argv[2:]
        asked = {str(row): row for row in ROWS}[name]
        print(json.dumps(measure(asked, series, int(size), Path(folder), int(number), Path(photos))))
    else:
        main(tyro.cli(Config, description=__doc__))
