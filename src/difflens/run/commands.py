"""The words of commands, and the command line that repeats a run."""

import shlex
from dataclasses import fields
from typing import Any

FORMER_COMMANDS = {"rivals": "compare"}
"""What earlier versions called a command, and what it is called now."""


def shown_command(command: str, config: Any) -> str:
    """The command line that repeats a run: every field that is set to something else than its default."""
    words = ["difflens", command]
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or value is None or field.name in ("out", "resume"):
            continue
        if isinstance(value, bool) and isinstance(field.default, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", "DIR"])
