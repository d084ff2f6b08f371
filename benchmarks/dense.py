"""Dense tasks on scenes of cut-outs: frozen, fed-back and fine-tuned diffusion features against the same
network untrained.

Usage: python benchmarks/dense.py OUTPUT_FOLDER [options]; `--help` names them. What is finished is not run
again.

1. Scenes to pre-train and train on, and scenes of other objects to evaluate on.
2. A U-Net is pre-trained on the training scenes, without their labels.
3. The noise step of each backbone, and the block of the single-block row, are chosen by the linear head on
   further scenes of training objects; likewise the learning rate of the rows that train the network, by
   UPerNet. From scratch, where noise is only in the way, the smallest step is taken. Nothing is chosen on the
   validation scenes.
4. The linear head, UPerNet and Mask R-CNN on each extractor, with all and with few labels, each for the same
   number of iterations.
5. The table, in Markdown, also in OUTPUT_FOLDER/table.md.

On an NVIDIA GPU: as it is, and with `--source FOLDER_OF_STAMPS --preset scenes-rgb-64`. RESULTS.md says with
which options its tables were made on a CPU.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from difflens import load_backbone
from difflens.heads.pyramid import usual_blocks

T = TypeVar("T", int, float)
FINETUNED = ("--extractor", "finetuned", "--learning-rate", "RATE")
ROWS = (
    ("frozen, single block", "trained", ("--blocks", "BLOCK")),
    ("frozen, multi-block", "trained", ()),
    ("DifFeed", "trained", ("--extractor", "feedback")),
    ("fine-tuned", "trained", (*FINETUNED, "--layer-decay", "0.85")),
    ("frozen untrained, multi-block", "untrained", ()),
    ("from scratch with the labels", "scratch", FINETUNED),
)
FIGURES = (
    ("linear", "miou", "linear mIoU"),
    ("upernet", "miou", "UPerNet mIoU"),
    ("mask-rcnn", "box_ap", "box AP"),
    ("mask-rcnn", "mask_ap", "mask AP"),
)
HEADS = tuple(dict.fromkeys(head for head, *_ in FIGURES))


def run(command: str, out: Path, *options: object, finished: str = "metrics.json") -> Path:
    """Run a command unless its folder says that it has finished; an unfinished one is resumed where it can
    be."""
    if not (out / finished).exists():
        words = [command, *map(str, options), "--out", str(out)]
        if command == "scenes":
            shutil.rmtree(out, ignore_errors=True)
        elif out.exists():
            words.append("--resume")
        print("difflens", *words, flush=True)
        subprocess.run([sys.executable, "-m", "difflens", *words], check=True)
    return out


def metric(folder: Path, key: str) -> float:
    return float(json.loads((folder / "metrics.json").read_text())[key])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def best(measured: Mapping[T, float]) -> T:
    return max(measured, key=lambda each: measured[each])


def figures(measured: Mapping[T, float]) -> str:
    return ", ".join(f"{each:g}: {100 * value:.1f}" for each, value in measured.items())


def option(name: str, value: object) -> tuple[object, ...]:
    """Words of a command, none for what is not asked for."""
    return () if value is None else (name, *value) if isinstance(value, list) else (name, value)


def filled(options: tuple[str, ...], **chosen: object) -> list[object]:
    return [chosen.get(word, word) for word in options]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", default="fashion", help="fashion, or a folder of cut-outs")
    parser.add_argument("--preset", default="scenes-64", help="of difflens pretrain")
    parser.add_argument("--epochs", type=int, help="of pre-training; default: the preset's")
    parser.add_argument("--precision", help="of pre-training; default: of difflens pretrain")
    parser.add_argument("--scenes", type=int, default=20_000, help="to train on")
    parser.add_argument("--val", type=int, default=1_000, help="scenes to evaluate on")
    parser.add_argument(
        "--size", type=int, default=64, help="of the scenes, in pixels; also the side that is read"
    )
    parser.add_argument("--iterations", type=int, default=6_000, help="of every head")
    parser.add_argument(
        "--choosing", type=int, default=500, help="iterations of each run that chooses a place"
    )
    parser.add_argument(
        "--noise-steps", type=int, nargs="+", default=[5, 20, 50, 90, 150], help="to choose from"
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[3e-4, 1e-3],
        help="learning rates to choose from for rows that train the network",
    )
    parser.add_argument(
        "--head-rate", type=float, help="learning rate of the other rows; default: the command's"
    )
    parser.add_argument("--scale", type=float, nargs=2, help="of training images; default: the command's")
    parser.add_argument("--width", type=int, help="channels of UPerNet and Mask R-CNN; default: what fits")
    parser.add_argument(
        "--proposals", type=int, help="of Mask R-CNN, in an image; default: of difflens detect"
    )
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.1], help="of the labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time: a small network leaves a GPU idle"
    )
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        key: value
        for key, value in vars(asked).items()
        if key not in ("out", "heads", "seeds", "jobs", "fractions")
    }
    kept = out / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{kept} holds other settings than these: take another folder")
    kept.write_text(json.dumps(settings))
    common = ("--side", asked.size, *option("--scale", asked.scale))
    head_rate = option("--learning-rate", asked.head_rate)
    width, proposals = option("--width", asked.width), option("--proposals", asked.proposals)

    scenes = {
        name: run(
            "scenes",
            out / name,
            "--source",
            asked.source,
            "--train",
            train,
            "--val",
            val,
            "--size",
            asked.size,
            "--seed",
            seed,
            finished="scenes.json",
        )
        for name, train, val, seed in (("scenes", asked.scenes, asked.val, 0), ("choosing", asked.val, 1, 1))
    }
    pretrained = run(
        "pretrain",
        out / "pretrained",
        "--preset",
        asked.preset,
        "--data",
        scenes["scenes"] / "images" / "train",
        *option("--epochs", asked.epochs),
        *option("--precision", asked.precision),
        finished="model/model_index.json",
    )
    backbones = {"trained": str(pretrained / "model"), "untrained": f"random:{pretrained / 'model'}"}
    backbones["scratch"] = backbones["untrained"]

    def judged(name: str, *options: object, head: str = "linear", backbone: str = "trained") -> float:
        folders = [
            (scenes[each] / "images" / "train", scenes[each] / "masks" / "train")
            for each in ("scenes", "choosing")
        ]
        folder = run(
            "segment",
            out / f"choose-{name}",
            "--backbone",
            backbones[backbone],
            "--head",
            head,
            "--train",
            *folders[0],
            "--val",
            *folders[1],
            "--classes",
            scenes["scenes"] / "classes.txt",
            "--iterations",
            asked.choosing,
            *common,
            *options,
        )
        return metric(folder, "miou")

    by_step = {
        backbone: {
            t: judged(f"{backbone}-t{t}", "--noise-steps", t, backbone=backbone) for t in asked.noise_steps
        }
        for backbone in ("trained", "untrained")
    }
    steps = {backbone: best(measured) for backbone, measured in by_step.items()} | {
        "scratch": min(asked.noise_steps)
    }
    blocks = usual_blocks(load_backbone(backbones["trained"]))
    by_block = {b: judged(f"b{b}", "--noise-steps", steps["trained"], "--blocks", b) for b in blocks}
    by_rate = {
        row: {
            rate: judged(
                f"{row}-{rate:g}",
                "--noise-steps",
                steps[backbone],
                *width,
                *filled(options, RATE=rate),
                head="upernet",
                backbone=backbone,
            )
            for rate in asked.rates
        }
        for row, (_, backbone, options) in enumerate(ROWS)
        if "RATE" in options
    }
    lines = [
        "Chosen on scenes of training objects, by mIoU: "
        + "; ".join(
            [
                *(
                    f"t = {steps[backbone]} {backbone} of {figures(measured)}"
                    for backbone, measured in by_step.items()
                ),
                f"block {best(by_block)} of {figures(by_block)}",
                *(
                    f"learning rate {ROWS[row][0]} {best(rates):g} of {figures(rates)}"
                    for row, rates in by_rate.items()
                ),
            ]
        ),
        "",
    ]

    def train(job: tuple[str, int, float, int]) -> None:
        head, row, fraction, seed = job
        _, backbone, options = ROWS[row]
        own = {"linear": (), "upernet": (*width, *rates(row)), "mask-rcnn": (*width, *proposals, *rates(row))}
        run(
            "detect" if head == "mask-rcnn" else "segment",
            folder(*job),
            "--backbone",
            backbones[backbone],
            "--data",
            scenes["scenes"],
            "--noise-steps",
            steps[backbone],
            "--iterations",
            asked.iterations,
            "--seed",
            seed,
            *(("--image-fraction", fraction) if fraction < 1 else ()),
            *common,
            "--head",
            head,
            *own[head],
            *filled(options, BLOCK=best(by_block), RATE=best(by_rate[row]) if row in by_rate else None),
        )

    def rates(row: int) -> tuple[object, ...]:
        return () if row in by_rate else head_rate

    def folder(head: str, row: int, fraction: float, seed: int) -> Path:
        return out / f"{head}-{row}-{fraction:g}-{seed}"

    seeds = range(asked.seeds)
    jobs = list(itertools.product(asked.heads, range(len(ROWS)), asked.fractions, seeds))
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(train, jobs))

    columns = [each for each in FIGURES if each[0] in asked.heads]
    titles = [
        f"{title}, {100 * fraction:g} % labels" for fraction in asked.fractions for *_, title in columns
    ]
    lines += [f"| features | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row, (name, *_) in enumerate(ROWS):
        cells = [
            spread([100 * metric(folder(head, row, fraction, seed), key) for seed in seeds])
            for fraction in asked.fractions
            for head, key, _ in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
