"""Two processes on the CPU (gloo), as `torchrun` starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_two(*arguments: object) -> None:
    """Run a command of difflens in two processes."""
    run_two_of("difflens", *arguments)


def run_two_of(module: str, *arguments: object) -> None:
    """Run a module in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    result = subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-8000:]
