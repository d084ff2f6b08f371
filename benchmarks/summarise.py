"""Mean and standard deviation of top-1 over seeds, from run directories called NAME-SEED.

Usage: python benchmarks/summarise.py FOLDER
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main(folder: Path) -> None:
    runs: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for path in sorted(folder.glob("*/metrics.json")):
        name, _, seed = path.parent.name.rpartition("-")
        metrics = json.loads(path.read_text())
        if name and "top1" in metrics:
            runs[name].append((seed, 100 * metrics["top1"]))
    print("| run | top-1, % | seeds | by seed |\n|---|---|---|---|")
    for name, found in sorted(runs.items()):
        values = [value for _, value in found]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        each = ", ".join(f"{seed}: {value:.2f}" for seed, value in found)
        print(f"| {name} | {statistics.mean(values):.2f}{spread} | {len(values)} | {each} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
