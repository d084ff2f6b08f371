"""The command line: one command a public function. It parses, calls the function and prints the summary of
its result."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import difflens
from difflens.configs.cka import CkaConfig
from difflens.configs.compare import CompareConfig
from difflens.configs.demo import DemoConfig
from difflens.configs.detect import DetectConfig
from difflens.configs.distill import DistillConfig
from difflens.configs.earlier import FORMER_COMMANDS
from difflens.configs.explain import ExplainConfig
from difflens.configs.explore import ExploreConfig
from difflens.configs.export import ExportConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.info import InfoConfig
from difflens.configs.match import MatchConfig
from difflens.configs.options import Options
from difflens.configs.predict import PredictConfig
from difflens.configs.presets import PresetsConfig
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.propagate import PropagateConfig
from difflens.configs.push import PushConfig
from difflens.configs.report import ReportConfig
from difflens.configs.scenes import ScenesConfig
from difflens.configs.segment import SegmentConfig
from difflens.configs.suggest import SuggestConfig
from difflens.configs.sweep import SweepConfig
from difflens.errors import DiffLensError
from difflens.parsing import parse
from difflens.run.signals import raise_on_interrupt
from difflens.run.text import visible

# what torch says when a process that reads images was killed, for instance by a lack of memory
_LOST = re.compile(r"DataLoader worker \(.*\) (is killed by signal: [\w ]+|exited unexpectedly)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse a command line and run its command.

    It exits with 0, with 2 after a user's error, and with 128 + N where signal N ends a command: 130 after
    Ctrl-C, 143 after SIGTERM, 141 if the reader of the output goes away.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    try:
        try:
            _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as `| head` leaves it; nothing is left to flush at the exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _main(words: list[str]) -> None:
    former = words[0] if words else ""
    if former in FORMER_COMMANDS and not _silent():
        print(f"difflens: `{former}` is now `{FORMER_COMMANDS[former]}`", file=sys.stderr)
    try:
        config = parse(words, COMMANDS)
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere if _silent() else sys.stdout),
        ):
            _run(config)
    except DiffLensError as error:
        _fail(f"error: {error}", 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"error: {where}{error.strerror or error}", 2)
    except RuntimeError as error:
        if not (lost := _LOST.match(str(error))):
            raise
        _fail(f"error: a process that reads images was lost: {lost[0]}; memory may be short", 2)
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; --resume continues a command that has this option"
        _fail(said, 128 + getattr(stop, "number", signal.SIGINT))


def _fail(message: str, code: int) -> NoReturn:
    print(visible(f"difflens: {message}"), file=sys.stderr)
    sys.exit(code)


def _silent() -> bool:
    """Return True on all processes but the first, which alone prints."""
    return int(os.environ.get("RANK", 0)) > 0


def _run(config: Options) -> None:
    """Call the command's function, and print the summary of its result and the list of images that it left
    out."""
    # imported now, because torch takes seconds that help should not take
    from difflens.run.processes import leave_together

    function = difflens.plan if getattr(config, "dry_run", False) else getattr(difflens, config.function)
    raise_on_interrupt()
    announce = {"announce": _say} if "announce" in signature(function).parameters else {}
    result = function(config, **announce)
    closing = result.closing() if announce else result.summary()
    if closing:
        print(visible(closing))
    left_out = result.left_out()
    if left_out and not _silent():
        print(visible(left_out), file=sys.stderr)
    leave_together()


def _say(line: str) -> None:
    print(visible(line), flush=True)


COMMANDS: dict[str, type[Options]] = {
    "demo": DemoConfig,
    "info": InfoConfig,
    "extract": ExtractConfig,
    "presets": PresetsConfig,
    "suggest": SuggestConfig,
    "sweep": SweepConfig,
    "probe": ProbeConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "cka": CkaConfig,
    "compare": CompareConfig,
    "explain": ExplainConfig,
    "explore": ExploreConfig,
    "match": MatchConfig,
    "propagate": PropagateConfig,
    "pretrain": PretrainConfig,
    "distill": DistillConfig,
    "generate": GenerateConfig,
    "fidelity": FidelityConfig,
    "report": ReportConfig,
    "scenes": ScenesConfig,
    "segment": SegmentConfig,
    "detect": DetectConfig,
}
"""The configuration of each command; its function is the public name of the package."""
