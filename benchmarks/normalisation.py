"""How linear heads and k-NN should normalise features, judged on held-out training images.

Usage: python benchmarks/normalisation.py CIFAR10 OUT

Two pairs of network and data: `fashion` on the bundled Fashion-MNIST, whose first 8,000 training images train
and whose last 2,000 judge; and `photos` on 10,000 training images of the folder CIFAR10, which 5,000 others
judge. Test images are not read. The table, also in OUT/table.md, has means over seeds of the head, and
differences paired on the same images.
"""

import statistics
import sys
from pathlib import Path

import torch

from difflens import ExtractConfig, ProbeConfig, data_from_arrays, extract, load_data, probe
from difflens.choices import HeadName, NormaliseName
from difflens.data.split import ImageData
from photographs import metrics, paired

HEADS: dict[HeadName, range] = {"linear": range(3), "knn": range(1)}  # k-NN has no random choice
KINDS: tuple[NormaliseName, ...] = ("none", "standard", "whiten")
TRAINING = 8_000


def held_out_fashion() -> ImageData:
    train = load_data("fashion").train
    images = torch.stack([train.image(row) for row in range(len(train))]).numpy()
    labels = torch.as_tensor(train.labels).numpy()
    return data_from_arrays((images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:]))


def main() -> None:
    cifar10, out = sys.argv[1], Path(sys.argv[2])
    photographs = f"folder:{cifar10}/train"
    stores = {
        "fashion": ExtractConfig(
            out=out / "store-fashion", backbone="fashion", blocks=(18,), noise_steps=(5,), pool=2
        ),
        "photos": ExtractConfig(
            out=out / "store-photos",
            data=photographs,
            val_fraction=0.1,
            limit=10_000,
            backbone="photos",
            blocks=(12,),
            noise_steps=(50,),
            pool=2,
        ),
    }
    lines = [
        "| network | head | none | standard | whiten | standard - none | whiten - none |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, store in stores.items():
        data = held_out_fashion() if network == "fashion" else None
        if not (store.out / "metrics.json").exists():
            extract(store, data=data)
        for head, seeds in HEADS.items():
            found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
            for kind in KINDS:
                for seed in seeds:
                    folder = out / f"{network}-{head}-{kind}-{seed}"
                    if not (folder / "metrics.json").exists():
                        run = ProbeConfig(out=folder, store=store.out, head=head, normalise=kind, seed=seed)
                        probe(run, data)
                    found[kind].append(folder)
            top1 = [
                statistics.mean(100 * float(str(metrics(folder)["top1"])) for folder in found[kind])
                for kind in KINDS
            ]
            differences = [paired(found[kind], found["none"])[:2] for kind in KINDS[1:]]
            cells = [f"{value:.2f}" for value in top1]
            cells += [f"{100 * mean:+.2f} ± {100 * half:.2f}" for mean, half in differences]
            lines.append(f"| `{network}` | {head} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
