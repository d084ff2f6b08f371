"""Several processes on the CPU (gloo), as `torchrun` starts them."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# imports torch once: the processes are forked from one that has it
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["diffusers", "torchvision", "accelerate", "difflens.cli", "difflens.opening"]
)
_SECONDS = 240


def run_two(*arguments: object) -> None:
    """Run a command of difflens in two processes."""
    run_several(2, "difflens", *arguments)


def run_several(count: int, module: str, *arguments: object) -> None:
    """Run a module in `count` processes, in the environment that `torchrun` gives them."""
    port, words = _free_port(), [*map(str, arguments)]
    with TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(count)]
        members = [
            _CONTEXT.Process(target=_member, args=(rank, count, port, module, words, log, dict(os.environ)))
            for rank, log in enumerate(logs)
        ]
        for member in members:
            member.start()
        end = time.monotonic() + _SECONDS
        # one that fails leaves the others waiting
        while any(member.is_alive() for member in members) and time.monotonic() < end:
            if any(member.exitcode for member in members):
                break
            time.sleep(0.02)
        codes = [member.exitcode for member in members]
        for member in members:
            member.kill()
            member.join()
        assert codes == [0] * count, "".join(f"{log.name}: {log.read_text()[-4000:]}\n" for log in logs)


def start_two_of(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a module in two processes with torch's own launcher, which is the result."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "--master-port", _free_port(), "-m", module, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _member(
    rank: int,
    count: int,
    port: str,
    module: str,
    words: Sequence[str],
    log: Path,
    environment: dict[str, str],
) -> None:
    """Be one of `count` processes; what it prints goes to `log`."""
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(LOCAL_WORLD_SIZE=str(count))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
