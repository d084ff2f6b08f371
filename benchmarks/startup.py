"""CPU seconds of help and of `import difflens`: medians of several runs, each in a new process.

Usage: python benchmarks/startup.py [--runs 5]
"""

import argparse
import os
import statistics
import subprocess
import sys

from difflens.cli import COMMANDS


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each row, after one that warms the disk cache"
    )
    runs = parser.parse_args().runs
    rows = {
        "python -c pass": ["-c", "pass"],
        "import difflens": ["-c", "import difflens"],
        **{
            f"difflens {words}".strip(): ["-m", "difflens", *words.split()]
            for words in ("--help", *(f"{command} --help" for command in COMMANDS))
        },
    }
    print("| command | CPU s, median | slowest |\n|---|---|---|")
    for name, arguments in rows.items():
        cpu_seconds(arguments)
        seconds = [cpu_seconds(arguments) for _ in range(runs)]
        print(f"| `{name}` | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
