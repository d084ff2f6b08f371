"""How much accuracy is lost by reading where `difflens suggest` says, and whether halving sweeps choose as well.

Usage: python benchmarks/suggest.py OUT --pair NAME BACKBONE DATA [--pair ...] [--images N]

For each pair, once, in OUT/NAME; what is there is not made again:

1. `difflens extract`: the pooled maps of N labelled training images at all places, in store/.
2. The full labelled sweep: ridge regression at each place, five folds, so that each image is judged by a model
   that did not see it: correct.pt.
3. `difflens suggest`, which reads no label, with each seed: suggest-SEED/.

Then the tables, also in OUT/table.md:

- The regret of a rule is the accuracy of the best place minus that of the place which the rule chooses, in
  points. The best place is chosen on the images that measure it, so regrets are a little too high. Rules: each
  statistic, high or low; the combination that `suggest` uses; the combination of at most two with the
  least mean regret on all other pairs; the backbone's default; a random place.
- Successive halving against a sweep of the same cost, replayed on the stored maps: for each seed other images
  are drawn, both choose a place, and the place's accuracy in the full sweep is compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from difflens import FeatureStore, load_backbone
from difflens.data.split import every_nth, place_in_class
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.halving import FIRST_SHARE, Rung, successive_halving
from difflens.metrics.suggestion import DIRECTIONS, combined_score
from difflens.noise import Stream, random_order

FOLDS = 5
SHARES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
Rule = tuple[tuple[str, int], ...]


def difflens(*words: object) -> None:
    print("difflens", *words, flush=True)
    subprocess.run([sys.executable, "-m", "difflens", *map(str, words)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--pair", nargs=3, action="append", required=True, metavar=("NAME", "BACKBONE", "DATA")
    )
    parser.add_argument("--images", type=int, default=1000, help="labelled images of the full sweep")
    parser.add_argument("--seeds", type=int, default=1, help="of suggest")
    parser.add_argument("--halving", nargs="*", default=[], help="pairs on which halving is replayed")
    parser.add_argument("--budgets", nargs="+", type=int, default=[200, 400], help="images, of halving")
    parser.add_argument("--replays", type=int, default=10, help="seeds of halving")
    asked = parser.parse_args()
    found = [Pair(asked.out, *words, asked.images, asked.seeds) for words in asked.pair]
    text = regret_table(found) + "".join(
        halving_table(pair, asked.budgets, asked.replays) for pair in found if pair.name in asked.halving
    )
    (asked.out / "table.md").write_text(text)
    print(text)


class Pair:
    """A backbone and data: the accuracy of every place, and what `suggest` says of it."""

    def __init__(self, out: Path, name: str, backbone: str, data: str, images: int, seeds: int):
        self.name, folder = name, out / name
        loaded = load_backbone(backbone)
        self.blocks = [block.index for block in loaded.blocks]
        self.steps = sorted({*map(loaded.process.at, SHARES)})
        self.default = (loaded.defaults.block, loaded.defaults.noise_step)
        words = ("--backbone", backbone, "--data", data, "--noise-steps", *self.steps, "--device", "cpu")
        if not (folder / "store" / "manifest.json").exists():
            places = ("--blocks", *self.blocks, "--pool", 2, "--splits", "train", "--limit", images)
            difflens("extract", *words, *places, "--out", folder / "store")
        self.store = FeatureStore(folder / "store")
        self.labels = self.store.labels("train")
        self.classes = int(self.labels.max()) + 1
        if not (folder / "correct.pt").exists():
            torch.save(self._correct(images), folder / "correct.pt")
        self.correct: Tensor = torch.load(folder / "correct.pt")
        self.accuracy = 100 * self.correct.double().mean(-1)
        self.statistics: list[dict[str, Tensor]] = []
        for seed in range(seeds):
            if not (folder / f"suggest-{seed}" / "metrics.json").exists():
                difflens("suggest", *words, "--seed", seed, "--out", folder / f"suggest-{seed}")
            metrics = json.loads((folder / f"suggest-{seed}" / "metrics.json").read_text())
            order = [metrics["noise_steps"].index(t) for t in self.steps]
            self.statistics.append(
                {
                    name: torch.tensor(
                        [[float("nan") if v is None else v for v in rows[row]] for row in order]
                    )
                    for name, rows in metrics["statistics"].items()
                }
            )
            self.passes: int = metrics["passes"]

    def features(self, t: float, block: int, rows: Tensor) -> Tensor:
        return self.store.maps("train", block, t)[rows].flatten(1).float()

    def _correct(self, images: int) -> Tensor:
        """Return (T, B, N) bool: whether each image is classified correctly by a model of the other folds."""
        place = place_in_class(self.labels)
        rows = (place < max(1, images // self.classes)).nonzero()[:, 0]
        labels, fold = self.labels[rows], place[rows] % FOLDS
        correct = torch.zeros(len(self.steps), len(self.blocks), len(rows), dtype=torch.bool)
        for (i, t), (j, block) in product(enumerate(self.steps), enumerate(self.blocks)):
            features = self.features(t, block, rows)
            for number in range(FOLDS):
                out = fold == number
                scores = held_out_scores("ridge", features, labels, out, out[~out], self.classes)
                correct[i, j, out] = scores.argmax(1) == labels[out]
        return correct

    def regret(self, score: Tensor) -> float:
        return float(self.accuracy.max() - self.accuracy.flatten()[score.flatten().argmax()])

    def regret_of(self, rule: Rule) -> float:
        """Return the mean regret of a rule over the seeds of `suggest`."""
        return statistics.mean(self.regret(combined_score(each, dict(rule))) for each in self.statistics)

    def regret_of_default(self) -> float:
        """Return the regret of the backbone's default block at the level nearest to its default level."""
        block, t = self.default
        row = min(range(len(self.steps)), key=lambda k: abs(self.steps[k] - t))
        return float(self.accuracy.max() - self.accuracy[row, self.blocks.index(block)])


def rules(names: Mapping[str, object]) -> Iterator[Rule]:
    """Yield every statistic, high or low, and every pair of them."""
    single = [(name, sign) for name in names for sign in (1, -1)]
    yield from ((each,) for each in single)
    yield from ((one, other) for one, other in combinations(single, 2) if one[0] != other[0])


def regret_table(pairs: list[Pair]) -> str:
    every = list(rules(pairs[0].statistics[0]))
    regret = {rule: [pair.regret_of(rule) for pair in pairs] for rule in every}
    rows = {in_words(rule): regret[rule] for rule in every if len(rule) == 1}
    best = min(every, key=lambda rule: statistics.mean(regret[rule]))
    rows[f"best of all rules, on these pairs: {in_words(best)}"] = regret[best]
    rows["chosen on all other pairs"] = []
    for held_out in range(len(pairs)):
        others = [k for k in range(len(pairs)) if k != held_out]
        chosen = min(every, key=lambda rule: statistics.mean(regret[rule][k] for k in others))
        rows["chosen on all other pairs"].append(regret[chosen][held_out])
    rows[f"`suggest`: {in_words(tuple(DIRECTIONS.items()))}"] = regret_of_shipped(pairs)
    rows["the backbone's default place"] = [pair.regret_of_default() for pair in pairs]
    rows["a random place, on average"] = [float(pair.accuracy.max() - pair.accuracy.mean()) for pair in pairs]
    header = ["regret, points", *(pair.name for pair in pairs), "mean", "largest"]
    lines = [row(header), row(["---"] * len(header))]
    best_cells = []
    for pair in pairs:
        t, b = divmod(int(pair.accuracy.argmax()), len(pair.blocks))
        best_cells.append(f"{pair.accuracy.max():.1f} % at {pair.blocks[b]}, t = {pair.steps[t]}")
    lines.append(row(["best place of the full sweep", *best_cells, "", ""]))
    lines.append(row(["images judged", *(str(pair.correct.shape[-1]) for pair in pairs), "", ""]))
    lines.append(row(["passes of `suggest`", *(f"{pair.passes:,}" for pair in pairs), "", ""]))
    for name, values in rows.items():
        cells = [*values, statistics.mean(values), max(values)]
        lines.append(row([name, *(f"{value:.1f}" for value in cells)]))
    return "\n".join(lines) + "\n"


def regret_of_shipped(pairs: list[Pair]) -> list[float]:
    return [pair.regret_of(tuple(DIRECTIONS.items())) for pair in pairs]


def halving_table(pair: Pair, budgets: list[int], seeds: int) -> str:
    header = ["images of the budget", "passes", "sweep", "halving", "halving - sweep", "halving's passes"]
    lines = [f"\n{pair.name}, {seeds} seeds:\n", row(header), row(["---"] * len(header))]
    for budget in budgets:
        plain, halved, passes = [], [], []
        for seed in range(seeds):
            order = balanced_order(pair.labels, seed)
            plain.append(float(pair.accuracy[plain_choice(pair, order[:budget])]))
            place, spent = halving_choice(pair, order, budget)
            halved.append(float(pair.accuracy[place]))
            passes.append(spent)
        better = [b - a for a, b in zip(plain, halved, strict=True)]
        cells = [str(budget), f"{budget * len(pair.steps):,}", *map(spread, (plain, halved, better))]
        lines.append(row([*cells, f"{statistics.mean(passes):,.0f}"]))
    return "\n".join(lines) + "\n"


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Return the rows in the order in which budgets draw them: as many of each class, at random."""
    order = random_order(Stream.SUBSET, torch.arange(len(labels)), seed)
    return order[place_in_class(labels[order]).argsort(stable=True)]


def measured(pair: Pair, rows: Tensor, held_out: Tensor, places: Tensor) -> Tensor:
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


def plain_choice(pair: Pair, rows: Tensor) -> tuple[int, int]:
    rows = rows.sort().values
    everywhere = torch.ones(pair.accuracy.shape, dtype=torch.bool)
    return best_of(measured(pair, rows, every_nth(pair.labels[rows], 5), everywhere))


def halving_choice(pair: Pair, order: Tensor, budget: int) -> tuple[tuple[int, int], int]:
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


def in_words(rule: Rule) -> str:
    return ", ".join(f"{'high' if sign > 0 else 'low'} {name.replace('_', ' ')}" for name, sign in rule)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
