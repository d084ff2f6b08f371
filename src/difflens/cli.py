"""The command line: one command a public function. It parses, calls the function and prints the summary of
its result."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from inspect import signature
from pathlib import Path

import tyro

import difflens
from difflens.configs.cka import CkaConfig
from difflens.configs.compare import CompareConfig
from difflens.configs.demo import DemoConfig
from difflens.configs.detect import DetectConfig
from difflens.configs.earlier import FORMER_COMMANDS
from difflens.configs.explain import ExplainConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.info import InfoConfig
from difflens.configs.options import Options
from difflens.configs.predict import PredictConfig
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.report import ReportConfig
from difflens.configs.scenes import ScenesConfig
from difflens.configs.segment import SegmentConfig
from difflens.configs.sweep import SweepConfig
from difflens.errors import DiffLensError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `difflens` and `python -m difflens`: exits 0, or 2 after a user's error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    former = words[0] if words else ""
    if former in FORMER_COMMANDS:
        words[0] = FORMER_COMMANDS[former]
        if not _silent():
            print(f"difflens: `{former}` is now `{words[0]}`", file=sys.stderr)
    config = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="difflens",
        description="See what a frozen diffusion model already knows.",
        args=words,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if _silent() else sys.stdout):
            _run(config)
    except DiffLensError as error:
        print(f"difflens: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        where = f"{error.filename}: " if error.filename else ""
        print(f"difflens: error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("difflens: interrupted; --resume continues a command that has this option", file=sys.stderr)
        sys.exit(130)


def _silent() -> bool:
    """Return True on all processes but the first, which alone prints."""
    return int(os.environ.get("RANK", 0)) > 0


def _run(config: Options) -> None:
    """Call the command's function, and print the summary of its result and the list of images that it left
    out."""
    # imported now, because torch takes seconds that help should not take
    from difflens.run.processes import leave_together

    function = getattr(difflens, config.command)
    announce = {"announce": _say} if "announce" in signature(function).parameters else {}
    result = function(config, **announce)
    print(result.summary())
    left_out = result.left_out()
    if left_out and not _silent():
        print(left_out, file=sys.stderr)
    leave_together()


def _say(line: str) -> None:
    print(line, flush=True)


COMMANDS: dict[str, Callable[..., Options]] = {
    "demo": DemoConfig,
    "info": InfoConfig,
    "extract": ExtractConfig,
    "sweep": SweepConfig,
    "probe": ProbeConfig,
    "predict": PredictConfig,
    "cka": CkaConfig,
    "compare": CompareConfig,
    "explain": ExplainConfig,
    "pretrain": PretrainConfig,
    "generate": GenerateConfig,
    "fidelity": FidelityConfig,
    "report": ReportConfig,
    "scenes": ScenesConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
}
"""The configuration of each command; its function is the public name of the package."""
