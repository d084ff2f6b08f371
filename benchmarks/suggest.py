"""How much accuracy is lost by reading where `difflens suggest` says.

Usage: python benchmarks/suggest.py OUT --pair NAME BACKBONE DATA [--pair ...] [--images N] [--seeds N]

For each pair of backbone and data, a full labelled sweep (`labelled_places.py`) and `difflens suggest`, which
reads no label, with each seed, in OUT/NAME; what is there is not made again. Then the table, in Markdown.

The regret of a rule is the accuracy of the best place minus that of the place that the rule chooses, in
points. The best place is chosen on the images that measure it, so regrets are a little too high. Rules: each
statistic, high or low; the mean rank of at most two that is best on all other pairs; what `suggest` uses; the
backbone's default place; a random place.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from difflens.metrics.suggestion import DIRECTIONS, combined_score
from labelled_places import LabelledPlaces, difflens, row

Rule = tuple[tuple[str, int], ...]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    names = ("NAME", "BACKBONE", "DATA")
    parser.add_argument("--pair", nargs=3, action="append", required=True, metavar=names)
    parser.add_argument("--images", type=int, default=1000, help="labelled images of a full sweep")
    parser.add_argument("--seeds", type=int, default=1, help="of suggest")
    asked = parser.parse_args()
    if len(asked.pair) < 2:
        parser.error("a rule is judged on a pair that did not choose it: name at least two")
    words: list[tuple[str, str, str]] = asked.pair
    print(table([Pair(asked.out, *each, asked.images, asked.seeds) for each in words]))


class Pair(LabelledPlaces):
    """A backbone and data, with the statistics of `suggest` by seed.

    Attributes:
        statistics: (T, B) by name, for each seed.
        passes: images x noise draws x noise levels that `suggest` reads.
    """

    def __init__(self, out: Path, name: str, backbone: str, data: str, images: int, seeds: int):
        super().__init__(out, name, backbone, data, images)
        self.name = name
        self.statistics: list[dict[str, Tensor]] = []
        for seed in range(seeds):
            run = self.folder / f"suggest-{seed}"
            if not (run / "metrics.json").exists():
                difflens("suggest", *self.words, "--seed", seed, "--out", run)
            metrics = json.loads((run / "metrics.json").read_text())
            order = [metrics["noise_steps"].index(t) for t in self.steps]
            self.statistics.append(
                {
                    name: torch.tensor([[float("nan") if v is None else v for v in rows[k]] for k in order])
                    for name, rows in metrics["statistics"].items()
                }
            )
            self.passes: int = metrics["passes"]

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


def table(pairs: list[Pair]) -> str:
    every = list(rules(pairs[0].statistics[0]))
    regret = {rule: [pair.regret_of(rule) for pair in pairs] for rule in every}
    rows = {in_words(rule): regret[rule] for rule in every if len(rule) == 1}
    best = min(every, key=lambda rule: statistics.mean(regret[rule]))
    rows[f"best of all rules, on these pairs: {in_words(best)}"] = regret[best]
    rows["chosen on all other pairs"] = []
    for held_out in range(len(pairs)):  # honest: the pair that judges a rule has not chosen it
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
    lines.append(row(["passes of `suggest`", *(f"{pair.passes:,}" for pair in pairs), "", ""]))
    for name, values in rows.items():
        cells = [*values, statistics.mean(values), max(values)]
        lines.append(row([name, *(f"{value:.1f}" for value in cells)]))
    return "\n".join(lines) + "\n"


def regret_of_shipped(pairs: list[Pair]) -> list[float]:
    return [pair.regret_of(tuple(DIRECTIONS.items())) for pair in pairs]


def in_words(rule: Rule) -> str:
    return ", ".join(f"{'high' if sign > 0 else 'low'} {name.replace('_', ' ')}" for name, sign in rule)


if __name__ == "__main__":
    main()
