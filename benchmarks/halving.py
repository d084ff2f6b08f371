"""Does a sweep that halves choose as well as a sweep of the same cost?

Usage: python benchmarks/halving.py OUT NAME BACKBONE DATA [--images N] [--budgets N ...] [--seeds N]

Both are replayed on the stored maps of a full labelled sweep (`labelled_places.py`), with the functions that
`difflens sweep` calls. Each seed draws other images; both choose a place by ridge regression, and the place's
accuracy in the full sweep is compared. Noise is that of one draw. The table is in Markdown.
"""

import argparse
import statistics
from math import ceil, sqrt
from pathlib import Path

import torch
from scipy.stats import t
from torch import Tensor

from difflens.data.split import every_nth, place_in_class
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.halving import FIRST_SHARE, Rung, successive_halving
from difflens.noise import Stream, random_order
from labelled_places import LabelledPlaces, row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name in ("name", "backbone", "data"):
        parser.add_argument(name)
    parser.add_argument("--images", type=int, default=2000, help="labelled images of the full sweep")
    parser.add_argument("--budgets", nargs="+", type=int, default=[200, 400], help="images")
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    pair = LabelledPlaces(asked.out, asked.name, asked.backbone, asked.data, asked.images)
    print(table(pair, asked.budgets, asked.seeds))


def table(pair: LabelledPlaces, budgets: list[int], seeds: int) -> str:
    header = ["images of the budget", "passes", "sweep", "halving", "halving - sweep", "halving's passes"]
    lines = [row(header), row(["---"] * len(header))]
    for budget in budgets:
        plain, halved, passes = [], [], []
        for seed in range(seeds):
            order = balanced_order(pair.labels, seed)
            plain.append(float(pair.accuracy[plain_choice(pair, order[:budget])]))
            place, spent = halving_choice(pair, order, budget)
            halved.append(float(pair.accuracy[place]))
            passes.append(spent)
        better = [b - a for a, b in zip(plain, halved, strict=True)]
        cells = [
            str(budget),
            f"{budget * len(pair.steps):,}",
            spread(plain),
            spread(halved),
            mean_interval(better),
        ]
        lines.append(row([*cells, f"{statistics.mean(passes):,.0f}"]))
    return "\n".join(lines) + "\n"


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Return the rows in the order in which budgets draw them: as many of each class, at random."""
    order = random_order(Stream.SUBSET, torch.arange(len(labels)), seed)
    return order[place_in_class(labels[order]).argsort(stable=True)]


def measured(pair: LabelledPlaces, rows: Tensor, held_out: Tensor, places: Tensor) -> Tensor:
    """Return accuracies (T, B) of ridge regression on held-out images, NaN outside `places`."""
    accuracy = torch.full(places.shape, torch.nan, dtype=torch.float64)
    labels = pair.labels[rows]
    for i, j in places.nonzero().tolist():
        features = pair.features(pair.steps[i], pair.blocks[j], rows)
        scores = held_out_scores("ridge", features, labels, held_out, held_out[~held_out], pair.classes)
        accuracy[i, j] = (scores.argmax(1) == labels[held_out]).double().mean()
    return accuracy


def best_of(accuracy: Tensor) -> tuple[int, int]:
    """Return (row, column) of the best place; among equal ones the earliest block, then the first row."""
    b, t = divmod(int(accuracy.nan_to_num(-1).T.flatten().argmax()), len(accuracy))
    return t, b


def plain_choice(pair: LabelledPlaces, rows: Tensor) -> tuple[int, int]:
    rows = rows.sort().values
    everywhere = torch.ones(pair.accuracy.shape, dtype=torch.bool)
    return best_of(measured(pair, rows, every_nth(pair.labels[rows], 5), everywhere))


def halving_choice(pair: LabelledPlaces, order: Tensor, budget: int) -> tuple[tuple[int, int], int]:
    """Return the place that `sweep --halve` chooses, and the passes that it spends."""
    last: list[Tensor] = []

    def measure(rung: Rung) -> Tensor:
        rows = order[: rung.images].sort().values
        new = ~torch.isin(rows, order[: rung.before])
        held_out = new.clone()
        held_out[new] = every_nth(pair.labels[rows[new]], 2)
        last.append(measured(pair, rows, held_out, rung.places))
        return last[-1]

    everywhere = torch.ones(pair.accuracy.shape, dtype=torch.bool)
    first = max(5 * pair.classes, ceil(budget / FIRST_SHARE))
    rungs = successive_halving(measure, everywhere, first, budget * len(everywhere), len(order))
    return best_of(last[-1]), sum(rung.passes for rung in rungs)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def mean_interval(values: list[float]) -> str:
    """Return the mean and its 95 % interval over seeds, by Student's t."""
    mean, error = statistics.mean(values), statistics.stdev(values) / sqrt(len(values))
    low, high = t.interval(0.95, len(values) - 1, mean, error)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
