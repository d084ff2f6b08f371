"""Stop every resumable command at random moments, resume it, and compare with an uninterrupted run.

Usage: python benchmarks/kill_resume.py OUTPUT_FOLDER [STOPS] [COMMAND ...]

Each command is stopped STOPS times (3), by SIGKILL, SIGTERM and SIGINT in turn. The moment is drawn uniformly
from the time that the uninterrupted run took after its folder appeared; seed 0. The run is then resumed to
its end. Compared are all files but reports, checkpoints, TensorBoard's and model cards; in JSON and CSV, all
values but measured times.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from difflens.version import __version__

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
IGNORED = (".html", ".md", ".pt", ".npy")
TIMES = ("seconds", "images_per_second", "speed", "minutes")
SMALL = "--limit 120 --device cpu"
DENSE = (
    "--data SCENES --blocks 3 5 --iterations 20 --batch-size 4 --width 16 --side 32 --checkpoint-minutes 0 "
    "--device cpu"
)

COMMANDS = {
    "extract": f"--blocks 3 5 --noise-steps 5 20 --splits train --shard-megabytes 1 {SMALL}",
    "probe": f"--head attention --blocks 5 --epochs 6 --dropout 0.1 {SMALL}",
    "sweep": "--noise-steps 5 20 50 --blocks 3 5 --budget 120 --device cpu",
    "compare": "--backbones pixels:1x28 random:pixels:1x28 --protocols knn few --samples 0 --limit 400 "
    "--device cpu",
    "pretrain": "--data fashion --limit 128 --preset tiny --epochs 4 --batch-size 16 --device cpu",
    "generate": "--backbone fashion --n 6 --steps 3 --batch-size 2 --device cpu",
    "demo": "--train-images 120 --test-images 60 --effort 0.1 --samples 4 --sampling-steps 2 --device cpu",
    "distill": "--backbone fashion --data fashion --limit 64 --epochs 4 --batch-size 16 --device cpu",
    "segment": DENSE,
    "detect": DENSE,
}


def start(name: str, root: Path, out: Path) -> subprocess.Popen[str]:
    words = COMMANDS[name].replace("SCENES", str(root / "scenes")).split()
    return subprocess.Popen(
        [sys.executable, "-m", "difflens", name, *words, "--resume", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DIFFLENS_QUIET": "1"},
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]


def wait_for(folder: Path, process: subprocess.Popen[str]) -> float:
    while not folder.exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not any(word in key for word in TIMES)}
        return {key: timeless(item) for key, item in kept.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def result(folder: Path) -> dict[str, Any]:
    """The content of a run, by file."""
    found: dict[str, Any] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in IGNORED or "tensorboard" in name or path.name in ("config.yaml", "compare.png"):
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = (
                [path.read_text("utf-8")] if path.suffix == ".json" else path.read_text("utf-8").splitlines()
            )
            found[name] = [timeless(json.loads(line)) for line in lines]
        elif path.suffix == ".csv":
            found[name] = timeless(list(csv.DictReader(path.read_text("utf-8").splitlines())))
        else:
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def stopped(name: str, root: Path, number: int, duration: float) -> tuple[bool, str]:
    """Stop and resume a run; return whether it equals the uninterrupted one, and a line about it."""
    folder, sent = root / f"{name}-{number}", SIGNALS[number % len(SIGNALS)]
    shutil.rmtree(folder, ignore_errors=True)
    process = start(name, root, folder)
    wait_for(folder, process)
    moment = random.uniform(0, duration)
    time.sleep(moment)
    process.send_signal(sent)
    _, errors = process.communicate()
    code = process.returncode
    clean = code in (0, -sent, 128 + sent) and "Traceback" not in errors
    finish(start(name, root, folder))
    expected, found = result(root / f"{name}-whole"), result(folder)
    different = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    shutil.rmtree(folder)
    said = "equal" if not different else f"DIFFERENT in {', '.join(different)}"
    said += "" if clean else f"; NOT CLEAN: {errors[-500:]}"
    line = f"{name} {number}: {sent.name} after {moment:.2f} of {duration:.2f} s, exit {code}; {said}"
    return clean and not different, line


def main(root: Path, stops: int, names: list[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    # a shell's background processes ignore SIGINT, and their children would
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"difflens {__version__}, Python {sys.version.split()[0]}, seed 0", flush=True)
    if not (root / "scenes").exists():
        scenes = ["scenes", "--train", "24", "--val", "6", "--size", "32", "--out", str(root / "scenes")]
        subprocess.run([sys.executable, "-m", "difflens", *scenes], check=True, stdout=subprocess.DEVNULL)
    for name in names or COMMANDS:
        whole = root / f"{name}-whole"
        shutil.rmtree(whole, ignore_errors=True)
        process = start(name, root, whole)
        began = wait_for(whole, process)
        finish(process)
        duration, equal = time.monotonic() - began, 0
        for number in range(stops):
            same, line = stopped(name, root, number, duration)
            equal += same
            print(line, flush=True)
        print(f"{name}: {equal} of {stops} resumed runs equal the uninterrupted one", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3, sys.argv[3:])
