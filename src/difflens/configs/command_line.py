"""The command line that repeats a run."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from difflens.configs.options import Options


def beside(run: Path, name: str) -> Path:
    """Return a folder for a next run, beside the folder of `run`: runs/a gives runs/a-NAME."""
    run = run if run.name else run.resolve()
    return run.with_name(f"{run.name}-{name}")


def next_commands(commands: Sequence[str]) -> list[str]:
    """Return the lines that end a summary: what to run next."""
    return ["Next:", *(f"  {command}" for command in commands)] if commands else []


def shown_command(config: Options, out: Path | str = "DIR") -> str:
    """Return the command line that repeats a run: the options that differ from their defaults, and --out.

    Args:
        out: the value of --out of a command that makes a run directory; another one keeps its own.
    """
    words, positional = ["difflens", config.command], []
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or value is None or field.name == "resume":
            continue
        if field.name == "out" and config.HAS_DIRECTORY:
            continue
        values = [str(item) for item in (value if isinstance(value, tuple) else (value,))]
        if field.name in config.POSITIONAL:
            positional += values
        elif isinstance(value, bool) and isinstance(field.default, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *values]
    words += ["--out", str(out)] if config.HAS_DIRECTORY else []
    return shlex.join([*words, *(["--", *positional] if positional else [])])
