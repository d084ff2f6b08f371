"""Two studies against the runs of `difflens probe` that they replace, as whole processes.

Usage: python benchmarks/commands.py OUT [--rows sweep compare] [--data DATA] [--images N]

- `sweep`: every block of a backbone at eight noise steps, against a linear probe for each place. All of these
  probes would take hours, so every `--every`-th block is probed at one noise step, and its time counts for
  the blocks up to the next one and for all noise steps. Pairs of runs take turns.
- `compare`: six backbones by four protocols, against one run of `probe` for each. Neither draws samples.

A run's time is that of its process, from start to end. Both sides read equally many images.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from difflens import load_backbone

STEPS = (1, 5, 10, 20, 50, 100, 200, 400)
BACKBONES = ("fashion", "random:fashion", "photos", "random:photos", "pixels:1x28", "random:timm:resnet18")
PROTOCOLS = {
    "linear": ("--head", "linear", "--grid"),
    "attention": ("--head", "attention"),
    "knn": ("--head", "knn"),
    "few": ("--head", "linear", "--grid", "--label-fraction", "0.1"),
}


def seconds(command: str, out: Path, *options: object) -> float:
    """Run a command into an empty folder; return its wall-clock time."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "difflens", command, "--out", out, "--device", "cpu", *options]
    began = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def sweep_row(asked: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of all probes, estimated, and of the sweep."""
    blocks = len(load_backbone(asked.backbone).blocks)
    data = ("--data", asked.data, "--backbone", asked.backbone)
    alone, together = [], []
    for number, block in enumerate(range(1, blocks + 1, asked.every)):
        step = STEPS[number % len(STEPS)]
        place = ("--blocks", block, "--noise-steps", step, "--head", "linear", "--limit", asked.images)
        covered = min(asked.every, blocks + 1 - block)
        alone.append(covered * len(STEPS) * seconds("probe", asked.out / "probe", *data, *place))
        if number % 2 == 0:
            budget = ("--noise-steps", *STEPS, "--budget", asked.images)
            together.append(seconds("sweep", asked.out / "sweep", *data, *budget))
    return sum(alone), statistics.median(together)


def compare_row(asked: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of all probes, and of the comparison."""
    data = ("--data", asked.data, "--limit", asked.images)
    training = ("--epochs", asked.epochs)
    options = (*training, "--samples", 0, "--backbones", *BACKBONES)
    together = seconds("compare", asked.out / "compare", *data, *options)
    alone = 0.0
    for backbone in BACKBONES:
        for protocol in PROTOCOLS.values():
            trained = () if "knn" in protocol else training
            alone += seconds("probe", asked.out / "probe", *data, "--backbone", backbone, *protocol, *trained)
    return alone, together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", choices=("sweep", "compare"), default=("sweep", "compare"))
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--backbone", default="fashion", help="of the sweep")
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--every", type=int, default=4, help="probe every n-th block of the sweep")
    parser.add_argument("--epochs", type=int, default=10, help="of the comparison's trainings")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print("| command | its probes, s | the command, s | times as fast |\n|---|---|---|---|")
    for row, measure in (("sweep", sweep_row), ("compare", compare_row)):
        if row in asked.rows:
            alone, together = measure(asked)
            print(f"| {row} | {alone:.0f} | {together:.0f} | {alone / together:.1f} |", flush=True)


if __name__ == "__main__":
    main()
