"""The command line that repeats a run."""

import shlex
from dataclasses import fields

from difflens.configs.options import Options


def shown_command(config: Options) -> str:
    """Return the command line that repeats a run: the options that differ from their defaults, with DIR as
    --out."""
    words, positional = ["difflens", config.command], []
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default or value is None or field.name in ("out", "resume"):
            continue
        values = [str(item) for item in (value if isinstance(value, tuple) else (value,))]
        if field.name in config.POSITIONAL:
            positional += values
        elif isinstance(value, bool) and isinstance(field.default, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *values]
    words += ["--out", "DIR"] if config.HAS_DIRECTORY else []
    return shlex.join([*words, *(["--", *positional] if positional else [])])
