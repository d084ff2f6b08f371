"""Segmentation of real street scenes: a bundled network beside pixels, itself untrained and from scratch.

Usage: python benchmarks/camvid.py CAMVID OUTPUT_FOLDER [options]; `--help` names them. CAMVID holds
images/{train,val,test}, masks/{train,val,test} and classes.txt. What is finished is not run again.

1. The noise step of each network is the best of a short run of the linear head, judged by the validation
   images. From scratch, where noise is only in the way, the smallest step is taken.
2. The linear head and UPerNet learn the training images with every row, for equally many iterations. The test
   images are scored once.
3. The table, in Markdown, also in OUTPUT_FOLDER/table.md.
"""

import argparse
import json
import statistics
from pathlib import Path

from dense import best, figures, metric, run, spread

ROWS = (
    ("frozen", "trained", ()),
    ("frozen, untrained", "untrained", ()),
    ("pixels", "pixels", ()),
    ("from scratch with the labels", "scratch", ("--extractor", "finetuned", "--learning-rate", "1e-3")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="photos")
    parser.add_argument("--side", type=int, default=128, help="that is read, in pixels")
    parser.add_argument("--noise-steps", type=int, nargs="+", default=[5, 20, 50, 100], help="to choose from")
    parser.add_argument("--choosing", type=int, default=60, help="iterations of each run that chooses")
    parser.add_argument("--iterations", type=int, default=200, help="of every row")
    parser.add_argument("--heads", nargs="+", default=("linear", "upernet"))
    parser.add_argument("--rows", nargs="+", default=[name for name, *_ in ROWS])
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    networks = {
        "trained": asked.backbone,
        "untrained": f"random:{asked.backbone}",
        "pixels": f"pixels:3x{asked.side}",
        "scratch": f"random:{asked.backbone}",
    }

    def segment(name: str, network: str, head: str, part: str, iterations: int, *options: object) -> Path:
        """Train on the training images and score those of `part`, val or test."""
        folders = [(asked.data / "images" / each, asked.data / "masks" / each) for each in ("train", part)]
        return run(
            "segment",
            out / name,
            "--backbone",
            networks[network],
            "--head",
            head,
            "--train",
            *folders[0],
            "--val",
            *folders[1],
            "--classes",
            asked.data / "classes.txt",
            "--side",
            asked.side,
            "--iterations",
            iterations,
            *options,
        )

    by_step = {
        network: {
            t: metric(
                segment(
                    f"choose-{network}-{t}", network, "linear", "val", asked.choosing, "--noise-steps", t
                ),
                "miou",
            )
            for t in asked.noise_steps
        }
        for network in ("trained", "untrained")
    }
    steps = {network: best(measured) for network, measured in by_step.items()}
    steps["scratch"] = min(asked.noise_steps)
    chosen = "; ".join(f"t = {steps[each]} {each} of {figures(found)}" for each, found in by_step.items())
    lines = [
        f"Chosen on validation images, by mIoU: {chosen}",
        "",
        "| features | head | mIoU, % | pixel accuracy, % | trainable parameters | training, minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, network, options in ROWS:
        if name not in asked.rows:
            continue
        at = () if network == "pixels" else ("--noise-steps", steps[network])
        for head in asked.heads:
            folders = [
                segment(f"{head}-{network}-{seed}", network, head, "test", asked.iterations, *at, *options,
                        "--seed", seed)
                for seed in range(asked.seeds)
            ]  # fmt: skip
            found = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
            miou, accuracy = (
                spread([100 * each[key] for each in found]) for key in ("miou", "pixel_accuracy")
            )
            minutes = statistics.mean(each["train_seconds"] for each in found) / 60
            size = found[0]["trainable_parameters"]
            lines.append(f"| {name} | {head} | {miou} | {accuracy} | {size:,} | {minutes:.1f} |")
            (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
