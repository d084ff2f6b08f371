"""What a network of photographs recognises: all heads, pixels, the network untrained and from scratch.

Usage: python benchmarks/photographs.py BACKBONE DATA OUTPUT_FOLDER [options]; `--help` names them. DATA is
what `difflens probe` takes, such as folder:cifar10. What is finished is not run again, and what was stopped
goes on.

1. A sweep over training images chooses the places: one block and noise step for heads that read one map, and
   those of DifFormer.
2. With each seed and each share of the labels: pixels, the untrained network, k-NN, linear (also with several
   noise draws, and normalised), MLP, attention, mix, DifFormer, DifFeed, fine-tuned, and the same network
   supervised from scratch. All train for equally many epochs with the same augmentation. Each test image is
   scored once a run.
3. Tables in Markdown, also in OUTPUT_FOLDER/table.md: accuracy of each row, and the paper's four orderings as
   paired differences on the same test images.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TITLES = {
    "pixels": "pixels, linear",
    "untrained": "untrained, linear",
    "untrained-attention": "untrained, attention",
    "knn": "k-NN",
    "linear": "linear",
    "draws-4": "linear, 4 noise draws",
    "draws-16": "linear, 16 noise draws",
    "standard": "linear, standardised",
    "whiten": "linear, whitened",
    "mlp": "MLP",
    "attention": "attention",
    "mix": "mix",
    "difformer": "DifFormer",
    "diffeed": "DifFeed",
    "finetuned": "fine-tuned, linear",
    "scratch": "supervised from scratch",
}
FROZEN = ("knn", "linear", "mlp", "attention", "difformer", "diffeed")
ORDERINGS = (
    ("attention", "linear"),
    ("difformer", "attention"),
    ("mix", "attention"),
    ("difformer", "mix"),
    ("diffeed", "attention"),
    ("linear", "untrained"),
    ("attention", "untrained-attention"),
    *((name, "linear") for name in ("draws-4", "draws-16", "standard", "whiten")),
    *((name, "pixels") for name in FROZEN),
)
RAW: list[object] = ["--normalise", "none"]
# a linear head on features that are read or normalised in several ways
READINGS: dict[str, list[object]] = {
    "linear": RAW,
    "draws-4": [*RAW, "--draws", 4],
    "draws-16": [*RAW, "--draws", 16],
    "standard": ["--normalise", "standard"],
    "whiten": ["--normalise", "whiten"],
}
Z95 = 1.96


def run(command: str, out: Path, *options: object) -> Path:
    """Run a command unless it has finished; an unfinished one is resumed."""
    if not (out / "metrics.json").exists():
        words = [command, *map(str, options), "--out", str(out), *(["--resume"] if out.exists() else [])]
        print("difflens", *words, flush=True)
        subprocess.run([sys.executable, "-m", "difflens", *words], check=True)
    return out


def metrics(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def hits(folder: Path) -> dict[str, int]:
    """Return 1 or 0 for each test image by name: whether its predicted class is the true one."""
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return {row["image"]: int(row["class"] == row["predicted"]) for row in csv.DictReader(file)}


def paired(a: Sequence[Path], b: Sequence[Path]) -> tuple[float, float, list[float]]:
    """Return top-1 of `a` minus that of `b`, the half-width of its 95 % interval, and the difference by seed.

    An image's difference is its mean over the seeds. The variance is that of the mean over the images, plus,
    with several seeds, that of the mean over the seeds: the interval errs on the wide side.

    Args:
        a, b: run directories with the same test images, one a seed.
    """
    by_seed = []
    for one, other in zip(a, b, strict=True):
        first, second = hits(one), hits(other)
        if first.keys() != second.keys():
            raise SystemExit(f"{one} and {other} did not score the same images")
        by_seed.append([first[name] - second[name] for name in sorted(first)])
    images = [statistics.mean(each) for each in zip(*by_seed, strict=True)]
    seeds = [statistics.mean(each) for each in by_seed]
    variance = statistics.variance(images) / len(images)
    if len(seeds) > 1:
        variance += statistics.variance(seeds) / len(seeds)
    return statistics.mean(seeds), Z95 * math.sqrt(variance), seeds


def places(asked: argparse.Namespace) -> tuple[list[object], list[object]]:
    """Return the options for the place of one map and for DifFormer's places, from a sweep."""
    options = ["--noise-steps", *asked.noise_steps, "--budget", asked.budget]
    folder = run("sweep", asked.out / "sweep", *asked.common, "--backbone", asked.backbone, *options)
    best: dict[str, list[object]] = metrics(folder)["recommended"]  # type: ignore[assignment]
    one: list[object] = ["--blocks", best["block"], "--noise-steps", best["noise_step"]]
    several: list[object] = ["--blocks", *best["fusion_blocks"], "--noise-steps", *best["fusion_noise_steps"]]
    return one, several


def options_of(
    name: str, asked: argparse.Namespace, epochs: int, one: list[object], several: list[object]
) -> list[object]:
    """Return the options of `difflens probe` for a row, without data, seed and labels."""
    training = ["--epochs", epochs, "--augment", asked.augment]
    untrained = f"random:{asked.backbone}"
    if name == "pixels":
        return ["--backbone", f"pixels:{asked.pixels}", "--head", "linear", *RAW, *training]
    if name == "untrained":
        return ["--backbone", untrained, "--head", "linear", *RAW, *one, *training]
    if name == "untrained-attention":
        return ["--backbone", untrained, "--head", "attention", *one, *training]
    if name == "knn":
        return ["--backbone", asked.backbone, "--head", "knn", *RAW, *one]
    if name == "finetuned":
        return ["--backbone", asked.backbone, "--head", "linear", "--extractor", "finetuned", *one, *training]
    if name == "scratch":
        free = ["--extractor", "finetuned", "--layer-decay", 1, "--no-fresh-noise"]
        return ["--backbone", untrained, "--head", "linear", *free, *one, *training]
    if name in READINGS:
        return ["--backbone", asked.backbone, "--head", "linear", *READINGS[name], *one, *training]
    read = several if name in ("difformer", "mix") else one
    return ["--backbone", asked.backbone, "--head", name, *read, *training]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backbone", help="of difflens probe, trained on images without labels")
    parser.add_argument("data", help="of difflens probe: photographs in classes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=TITLES)
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.1, 0.01], help="of the labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=28, help="of every row, with all labels")
    parser.add_argument("--few-epochs", type=int, default=100, help="of every row, with fewer labels")
    parser.add_argument("--augment", default="flip", choices=("none", "flip", "crop"))
    parser.add_argument("--noise-steps", type=int, nargs="+", default=[5, 10, 20, 50, 100], help="to sweep")
    parser.add_argument("--budget", default="10000", help="training images of the sweep, or minutes as 10m")
    parser.add_argument(
        "--pixels", default="3x32", help="channels and side of the images, for the row of pixels"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    asked.common = ["--data", asked.data]
    one, several = places(asked)
    lines = [f"Places: {' '.join(map(str, one))}; DifFormer: {' '.join(map(str, several))}", ""]
    for fraction in asked.fractions:
        few = [] if fraction == 1 else ["--label-fraction", fraction]
        epochs = asked.epochs if fraction == 1 else asked.few_epochs
        found = {
            name: [
                run(
                    "probe",
                    asked.out / f"{name}-{fraction:g}-{seed}",
                    *asked.common,
                    *few,
                    "--seed",
                    seed,
                    *options_of(name, asked, epochs, one, several),
                )
                for seed in range(asked.seeds)
            ]
            for name in asked.rows
        }
        lines += [f"{100 * fraction:g} % of the labels", "", *accuracies(found), "", *differences(found), ""]
        (asked.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def accuracies(found: dict[str, list[Path]]) -> list[str]:
    """Return the table of the rows: mean and standard deviation over the seeds."""
    lines = [
        "| features and head | top-1, % | trainable parameters | training, minutes | epochs |",
        "|---|---|---|---|---|",
    ]
    for name, folders in found.items():
        each = [metrics(folder) for folder in folders]
        top1 = [100 * float(str(values["top1"])) for values in each]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        minutes = statistics.mean(float(str(values["train_seconds"])) for values in each) / 60
        size, epochs = int(str(each[0]["trainable_parameters"])), each[0]["epochs"]
        lines.append(
            f"| {TITLES[name]} | {statistics.mean(top1):.2f}{spread} | {size:,} | {minutes:.1f} | {epochs} |"
        )
    return lines


def differences(found: dict[str, list[Path]]) -> list[str]:
    """Return the table of the orderings."""
    lines = ["| difference, paired | points | 95 % interval | by seed |", "|---|---|---|---|"]
    for a, b in ORDERINGS:
        if a in found and b in found:
            mean, half, seeds = paired(found[a], found[b])
            span = f"{100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}"
            each = ", ".join(f"{100 * seed:+.2f}" for seed in seeds)
            lines.append(f"| {TITLES[a]} - {TITLES[b]} | {100 * mean:+.2f} | {span} | {each} |")
    return lines


if __name__ == "__main__":
    main()
