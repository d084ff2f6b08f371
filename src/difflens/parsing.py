"""A command line as a configuration: words, a run's config.yaml, and what a misspelt word may have meant."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tyro

from difflens.configs.earlier import FORMER_COMMANDS, upgraded
from difflens.configs.options import Options, check_values, hints_of
from difflens.errors import DiffLensError, did_you_mean, expanded, listing
from difflens.version import __version__

_DESCRIPTION = """See what a frozen diffusion model already knows.

A command that writes a run also takes --config FILE, the config.yaml of another run: its options hold where
the command line gives none. --version prints the version."""

_SETTINGS = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
_REGISTRY = tyro.constructors.ConstructorRegistry()

# what config.yaml holds besides options: it identifies the content that the run read
_IDENTITY = {
    *("command", "backbone_fingerprint", "backbone_fingerprints", "data_fingerprint"),
    "scheduler_fingerprint",
    *("noise_seed", "labels_sha256", "limit_keeps", "places", "other_places", "normalised"),
}
# options of a run's place and its continuation, which another run does not take over
_OWN = {"out", "resume", "dry_run"}


def parse(words: Sequence[str], commands: Mapping[str, type[Options]]) -> Options:
    """Return the configuration that a command line gives.

    Args:
        words: the command line, without the name of the program.
        commands: the configuration of each command.

    Raises:
        DiffLensError: there is no such command or option, or the file of --config is not of this command.
        SystemExit: help or the version was asked for, or a value is missing.
    """
    words = list(words)
    if words == ["--version"]:
        print(f"difflens {__version__}")
        sys.exit()
    if words and words[0] in FORMER_COMMANDS:
        words[0] = FORMER_COMMANDS[words[0]]
    command = words[0] if words else ""
    if command and not command.startswith("-") and command not in commands:
        hint = did_you_mean(command, commands)
        raise DiffLensError(f"no command {command}; {hint}there are {listing(list(commands), len(commands))}")
    if command not in commands:
        return tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog="difflens", description=_DESCRIPTION, args=words, config=_SETTINGS
        )
    prog = f"difflens {command}"
    kind = commands[command]
    file, words = _config_file(words[1:])
    _check_options(command, kind, words)
    flags = {word.partition("=")[0].replace("_", "-") for word in words}
    if "--dry-run" in flags and "--out" not in flags:
        words = ["--out", os.devnull, *words]  # a dry run writes nothing
    if file is None:
        return tyro.cli(kind, prog=prog, args=words, config=_SETTINGS, registry=_REGISTRY)
    base = _from_file(command, kind, file)
    config = tyro.cli(kind, prog=prog, default=base, args=words, config=_SETTINGS, registry=_REGISTRY)
    check_values(config)
    return _without_idle(config, base)


@_REGISTRY.primitive_rule
def _number_or_choice(
    option: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Leave a word that is no number, or not among the choices, as it is: `resolve` says what it must be."""
    parts = get_args(option.type) or (option.type,)
    choices: dict[str, Any] = {}
    numbers: tuple[type, ...] = ()
    if get_origin(option.type) is Literal:
        choices = {str(choice): choice for choice in parts}
        metavar = f"{{{','.join(choices)}}}"
    elif {*parts} <= {int, float}:
        numbers = parts
        metavar = "|".join(kind.__name__.upper() for kind in numbers)
    else:
        return None

    def read(words: Sequence[str]) -> Any:
        (word,) = words
        for kind in numbers:
            with suppress(ValueError):
                return kind(word)
        return choices.get(word, word)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value in choices.values() or type(value) in numbers,
        str_from_instance=lambda value: [str(value)],
    )


def _config_file(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file that --config names, and the other words."""
    file, others = None, list[str]()
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--config":
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value or file is not None:
            raise DiffLensError("--config takes one file, the config.yaml of a run")
        file = expanded(value)
    return file, others


def _check_options(command: str, kind: type[Options], words: Iterable[str]) -> None:
    """Raise DiffLensError for a word that looks like an option and is none of the command."""
    known = {"help", *_flags(kind)}
    for word in words:
        if word == "--":  # positional words follow
            return
        name = word.partition("=")[0][2:].replace("_", "-")
        if word.startswith("--") and name not in known and not name.startswith("tyro-"):
            shown = [f"--{each}" for each in known]
            hint = did_you_mean(f"--{name}", shown, 0.7)  # all begin with hyphens
            raise DiffLensError(
                f"{command} has no option --{name}; {hint}`difflens {command} --help` lists them"
            )


def _flags(kind: type[Options]) -> Iterable[str]:
    """Yield the names of a command's options, without hyphens in front."""
    for name, hint in hints_of(kind).items():
        shown = name.replace("_", "-")
        yield shown
        if getattr(hint, "__origin__", hint) is bool:
            yield f"no-{shown}"
        for mark in getattr(hint, "__metadata__", ()):
            yield from (alias.lstrip("-") for alias in getattr(mark, "aliases", None) or ())


def _from_file(command: str, kind: type[Options], file: Path) -> Options:
    """Return the configuration that a run has written, without its directory.

    Raises:
        DiffLensError: the file is missing or damaged, of another command, or names an unknown option.
    """
    # imported now, because help does without them
    from difflens.run.reading import FieldError, checked, read_yaml

    file = file / "config.yaml" if file.is_dir() else file
    hints = hints_of(kind)
    names = {field.name: field for field in fields(kind)}
    if "out" not in names or not kind.HAS_DIRECTORY:
        raise DiffLensError(f"{command} writes no run, so it has no --config")

    def options(stored: dict[str, Any]) -> dict[str, Any]:
        record = upgraded(stored)
        if record.get("command") != command:
            raise FieldError(f"it is the configuration of {record.get('command')}, not of {command}")
        unknown = sorted({*record} - {*names} - _IDENTITY)
        if unknown:
            hint = did_you_mean(unknown[0], names).strip() or f"`difflens {command} --help` lists them"
            raise FieldError(f"{command} has no option {unknown[0]}; {hint}")
        return {
            name: checked(hints[name], value, name)
            for name, value in record.items()
            if name in names and name not in _OWN
        }

    values = read_yaml(file, options)
    missing: Any = tyro.MISSING  # options that the command line must give
    required = {name for name, field in names.items() if field.default is MISSING and name not in values}
    return kind(**dict.fromkeys(required, missing), **values)


def _without_idle(config: Options, base: Options) -> Options:
    """Return the configuration without those of the file's options that a flag replaces.

    They have no effect beside the flags, or are those of the preset that a flag names.
    """
    defaults = {field.name: field.default for field in fields(config)}

    def without(names: Iterable[str]) -> Options:
        unchanged = (name for name in names if getattr(config, name) == getattr(base, name))
        return replace(config, **{name: defaults[name] for name in unchanged})

    preset = getattr(config, "preset", None)
    if preset != getattr(base, "preset", None):
        config = without(config.PRESETS.get(preset or "", {}))
    return without({name for _, names in config.expanded().without_effect() for name in names})
