"""Recipes of heads, compared on labelled images that are held out of the training images.

Usage: python benchmarks/head_trials.py STORE OUT [--limit N] [--seeds N] TRIAL ...

STORE is a feature store of `difflens extract`, whose test images are those held out, such as `extract --data
folder:cifar10/train --val-fraction 0.1`. A TRIAL is the options of `difflens probe` in quotes, such as
"--head attention --width 128 --epochs 28". All trials read the same features and learn the same labels. What
is finished is not run again. The table, also in OUT/table.md, has the difference of each trial from the first
of its head, paired on the same images.
"""

import argparse
import re
import shlex
import statistics
from pathlib import Path

from photographs import metrics, paired, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("trials", nargs="+", metavar="TRIAL")
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| head and options | held-out top-1, % | - first of its head, points | training, minutes |",
        "|---|---|---|---|",
    ]
    first: dict[str, list[Path]] = {}
    for trial in asked.trials:
        words = shlex.split(trial)
        name = re.sub(r"[^\w.]+", "-", trial).strip("-")
        folders = [
            run("probe", asked.out / f"{name}-{seed}", "--store", asked.store, "--limit", asked.limit,
                "--seed", seed, *words)
            for seed in range(asked.seeds)
        ]  # fmt: skip
        each = [metrics(folder) for folder in folders]
        top1 = statistics.mean(100 * float(str(values["top1"])) for values in each)
        minutes = statistics.mean(float(str(values["train_seconds"])) for values in each) / 60
        base = first.setdefault(words[words.index("--head") + 1], folders)
        difference, half, _ = paired(folders, base)
        change = "" if base is folders else f"{100 * difference:+.2f} ± {100 * half:.2f}"
        lines.append(f"| `{trial}` | {top1:.2f} | {change} | {minutes:.1f} |")
        print(lines[-1], flush=True)
        (asked.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
