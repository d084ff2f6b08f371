"""Diffusion, BiGAN, SimCLR, MAE and supervised training on the same images, at equal compute, by the same
protocols.

Usage: python benchmarks/compare.py OUTPUT_FOLDER --features SPACE [options]; `--help` names them. What is
finished is not run again, so a run that was stopped goes on.

1. One after another, each method trains for a short while, to see how many images it takes a second on this
   machine.
2. Each method trains for as many epochs as fill the same number of minutes, with each seed.
3. `difflens compare` reads them all: the block and the noise step of each by a sweep over training images,
   then linear, attention, k-NN, 1 % and 10 % of the labels; of what generates, the Fréchet distance in the
   features of SPACE, a trained model or a backbone. Untrained: the U-Net and the ResNet with fresh weights.
4. The table over seeds, in Markdown, also in OUTPUT_FOLDER/table.md. Its minutes are at the speed of the
   first stage, during which nothing else should run.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from difflens.data.load import load_data

METHODS = ("diffusion", "bigan", "simclr", "mae", "supervised")
UNTRAINED = {"diffusion": "untrained U-Net", "supervised": "untrained ResNet"}
PILOT_IMAGES = 3_200
# what the attention head reads of all of them: a CPU cannot train it on many more
TOKEN_SIDE = 4


def difflens(*words: object) -> None:
    print("difflens", *words, flush=True)
    subprocess.run([sys.executable, "-m", "difflens", *map(str, words)], check=True)


def last_line(run: Path) -> dict[str, float]:
    line: dict[str, float] = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", default="fashion", help="where Fréchet distances are measured")
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--preset", default="fashion-small")
    parser.add_argument("--minutes", type=float, default=5, help="of each pre-training")
    parser.add_argument("--seeds", type=int, default=3, help="of pre-training")
    parser.add_argument("--sweep", type=int, default=2_000, help="training images that choose a place")
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, help="of every head; default: each head's own")
    parser.add_argument("--stage", choices=("pilot", "pretrain", "probe"), help="only this; default: all")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="to pre-train now")
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)

    def pretrain(folder: Path, method: str, seed: int, epochs: int, *options: object) -> Path:
        if not (folder / "model" / "README.md").exists():
            difflens(
                "pretrain",
                "--method",
                method,
                "--preset",
                asked.preset,
                "--data",
                asked.data,
                "--seed",
                seed,
                "--epochs",
                epochs,
                "--precision",  # the same for all methods, at equal compute
                "float32",
                *options,
                *(["--resume"] if folder.exists() else []),
                "--out",
                folder,
            )
        return folder

    images = len(load_data(asked.data).train)
    # seconds of an epoch
    costs = {
        method: last_line(pretrain(out / "pilot" / method, method, 0, 1, "--limit", PILOT_IMAGES))["seconds"]
        * images
        / PILOT_IMAGES
        for method in METHODS
    }
    epochs = {method: max(1, round(60 * asked.minutes / cost)) for method, cost in costs.items()}
    if asked.stage == "pilot":
        return
    runs = {(method, seed): out / f"{method}-{seed}" for method in METHODS for seed in range(asked.seeds)}
    if asked.stage != "probe":
        for (method, seed), folder in runs.items():
            if method in asked.methods:
                pretrain(folder, method, seed, epochs[method])
    if asked.stage == "pretrain":
        return

    backbones = [str(folder / "model") for folder in runs.values()]
    backbones += [f"random:{out / f'{method}-0' / 'model'}" for method in UNTRAINED]
    compared = out / "compare"
    if not (compared / "metrics.json").exists():
        difflens(
            "compare",
            "--backbones",
            *backbones,
            "--data",
            asked.data,
            "--sweep",
            asked.sweep,
            "--store",
            "--token-side",
            TOKEN_SIDE,
            "--label-fraction",
            0.01,
            0.1,
            "--features",
            asked.features,
            "--samples",
            asked.samples,
            "--normalise",
            "none",
            *(["--epochs", asked.epochs] if asked.epochs else []),
            *(["--resume"] if compared.exists() else []),
            "--out",
            compared,
        )
    minutes = {method: epochs[method] * cost / 60 for method, cost in costs.items()}
    write_table(asked.seeds, runs, epochs, minutes, compared, out)


def write_table(
    seeds: int,
    runs: dict[tuple[str, int], Path],
    epochs: dict[str, int],
    minutes: dict[str, float],
    compared: Path,
    out: Path,
) -> None:
    found = json.loads((compared / "metrics.json").read_text())
    by_name = {each["backbone"]: each for each in found["backbones"]}
    keys = list(found["backbones"][0]["accuracy"])
    lines = [
        f"Fréchet distances in the features of {found['feature_space']}, {found['samples']:,} samples.",
        "",
        f"| method | block, t | {' | '.join(keys)} | Fréchet | parameters | epochs | minutes |",
        "|---" * (len(keys) + 6) + "|",
    ]
    groups = {method: [runs[method, seed] for seed in range(seeds)] for method in METHODS}
    for method, folders in groups.items():
        each = [by_name[str(folder / "model")] for folder in folders]
        lines.append(row(method, each, keys, epochs[method], f"{minutes[method]:.1f}"))
    for method, name in UNTRAINED.items():
        lines.append(row(name, [by_name[f"random:{out / f'{method}-0' / 'model'}"]], keys, 0, "0"))
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    print(text)


def row(name: str, each: list[dict[str, Any]], keys: list[str], epochs: int, minutes: str) -> str:
    places = sorted({f"{backbone['block']}, {backbone['noise_step']}" for backbone in each})
    distances = [
        backbone["frechet_distance"] for backbone in each if backbone["frechet_distance"] is not None
    ]
    cells = [
        name,
        "; ".join(places),
        *(spread([100 * backbone["accuracy"][key] for backbone in each]) for key in keys),
        spread(distances) if distances else "",
        f"{each[0]['parameters']:,}",
        epochs,
        minutes,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
