"""Kill `extract` and `probe` at random moments, resume them, and compare with uninterrupted runs.

Usage: python benchmarks/kill_resume.py OUTPUT_FOLDER [KILLS]

Each command is killed (SIGKILL) once, at a moment drawn uniformly from the time that the uninterrupted run
took after its folder appeared, and then resumed to its end; that is done KILLS times (20). What is compared:
all files of a store, byte for byte; of a probe its weights, its predictions and its metrics but the seconds
of training.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMANDS = {
    "extract": [
        "extract",
        "--blocks",
        "13",
        "18",
        "--noise-steps",
        "5",
        "20",
        "--limit",
        "500",
        "--splits",
        "train",
        "--pool",
        "4",
        "--shard-megabytes",
        "1",
    ],
    "probe": ["probe", "--head", "attention", "--limit", "500", "--epochs", "6", "--dropout", "0.1"],
}


def start(name: str, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "difflens",
        *COMMANDS[name],
        "--device",
        "cpu",
        "--resume",
        "--out",
        str(out),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]


def wait_for(folder: Path) -> float:
    while not folder.exists():
        time.sleep(0.002)
    return time.monotonic()


def store_result(folder: Path) -> object:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def probe_result(folder: Path) -> object:
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["train_seconds"]
    files = "model/model.safetensors", "predictions.csv", "log.jsonl"
    return metrics, [(folder / name).read_bytes() for name in files]


RESULTS: dict[str, Callable[[Path], object]] = {"extract": store_result, "probe": probe_result}


def main(out: Path, kills: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    for name, result in RESULTS.items():
        whole = out / f"{name}-whole"
        shutil.rmtree(whole, ignore_errors=True)
        process = start(name, whole)
        began = wait_for(whole)
        finish(process)
        duration = time.monotonic() - began
        expected, equal = result(whole), 0
        for number in range(kills):
            folder = out / f"{name}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            process = start(name, folder)
            wait_for(folder)
            moment = random.uniform(0, duration)
            time.sleep(moment)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            left = sum(path.is_file() for path in folder.rglob("*"))
            finish(start(name, folder))
            same = result(folder) == expected
            equal += same
            print(
                f"{name} {number}: killed after {moment:.2f} of {duration:.2f} s, {left} files; "
                f"{'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
            shutil.rmtree(folder)
        print(f"{name}: {equal} of {kills} resumed runs equal the uninterrupted one", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
