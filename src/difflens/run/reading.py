"""Files that come back: read within limits, and checked as a whole against the types of their fields.

Every problem is a `DiffLensError` of one line that names the file and, where there is one, the field. Fields
that a type does not have are ignored, so that files of later versions can be read; a dataclass that refuses
them says `__pydantic_config__ = {"extra": "forbid"}`.
"""

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar, cast, get_origin

from difflens.errors import DiffLensError, counted

T = TypeVar("T")
Parse = type[T] | Callable[[Any], T]
"""What a file's content must be: a type, or a function that raises `FieldError`."""

MEBIBYTE = 2**20
_DEPTH = 32
_CONTAINERS = 2**20  # an empty list takes 20 times the memory that it takes in a file
_TABLE = dict[str, Any]

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 2


class FieldError(DiffLensError):
    """A field of a file is wrong; the message begins with its name."""


def short(value: object) -> str:
    """Return a value in words that fit into a message."""
    return _short.repr(value)


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        DiffLensError: there is no such file, or it is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DiffLensError(f"there is no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise DiffLensError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DiffLensError(f"{path} is no regular file")
    return status


def check_files(folder: Path) -> None:
    """Check that a folder, whose files another library opens, holds regular files and folders alone."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            check_regular(path)


def read_text(path: Path, most: int = 4 * MEBIBYTE) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte order mark, of at most `most` bytes.

    Raises:
        DiffLensError: the file is missing, no regular file, larger, or not UTF-8.
    """
    size = check_regular(path).st_size
    if size > most:
        raise DiffLensError(
            f"{path} is too large: it has {counted(size, 'byte')}, and at most {most:,} are read"
        )
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiffLensError(f"{path} is not UTF-8 text: byte {error.start} is wrong") from error
    except OSError as error:
        raise DiffLensError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, kind: Parse[T], most: int = 4 * MEBIBYTE) -> T:
    """Return the content of a JSON file as `kind`.

    Raises:
        DiffLensError: as in `read_text`; or the file is no JSON, nested too deeply, or a field is wrong.
    """
    return _parsed(path, _json(path, read_text(path, most)), kind)


def read_yaml(path: Path, kind: Parse[T]) -> T:
    """Return the content of a YAML or JSON file as `kind`; errors as in `read_json`. Aliases are refused."""
    return _parsed(path, yaml_of(path, read_text(path, MEBIBYTE)), kind)


def yaml_of(path: Path, text: str) -> Any:
    """Return the content of a YAML text of the file `path`, without aliases."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                raise DiffLensError(f"{path} has the alias *{event.anchor}, and aliases are not read")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                raise DiffLensError(f"{path} is nested too deeply")
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DiffLensError(f"{path} is damaged, and no YAML{where}: {problem}") from error


def read_lines(path: Path, kind: Parse[T], most: int = 64 * MEBIBYTE) -> list[T]:
    """Return the lines of a JSON Lines file, without a last line that is incomplete; none without a file.

    Raises:
        DiffLensError: as in `read_json`; the message names the line.
    """
    if not path.exists() and not path.is_symlink():
        return []
    *lines, rest = read_text(path, most).split("\n")
    with suppress(ValueError):
        json.loads(rest)
        lines.append(rest)
    return [
        _parsed(f"{path}, line {number}", _json(f"{path}, line {number}", line), kind)
        for number, line in enumerate(lines, start=1)
    ]


def read_table(path: Path, columns: Sequence[str], most: int = 256 * MEBIBYTE) -> dict[int, dict[str, str]]:
    """Return the rows of a CSV file that has at least these columns, by the number of their last line.

    Raises:
        DiffLensError: as in `read_text`; or a column or a cell is missing.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, most), newline=""), strict=True)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DiffLensError(f"{path}: the column {missing[0]} is missing")
        rows = {}
        for row in reader:
            rows[reader.line_num] = row
    except csv.Error as error:
        raise DiffLensError(f"{path} is damaged, and no table: {error}") from error
    for number, row in rows.items():
        if None in row or None in row.values():
            raise DiffLensError(
                f"{path}, line {number}: there are not {counted(len(reader.fieldnames or ()), 'cell')}"
            )
    return rows


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Return the tensors in a safetensors file.

    Raises:
        DiffLensError: the file is missing, no regular file, or damaged.
    """
    from safetensors.torch import load_file

    check_regular(path)
    try:
        return cast(dict[str, Any], load_file(path, device=device))
    except Exception as error:  # SafetensorError, OSError, ValueError or KeyError: it depends on the damage
        raise DiffLensError(f"{path} is damaged, and no safetensors file: {reason(error)}") from error


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in the header of a safetensors file; errors as in `read_tensors`."""
    from safetensors import safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise DiffLensError(f"{path} is damaged, and no safetensors file: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def checked(kind: type[T], value: object, name: str = "") -> T:
    """Return a JSON value as a type: text stays text, numbers stay numbers, and lists become tuples.

    Args:
        kind: a dataclass, or any type that pydantic knows.
        name: the name of the value in messages.

    Raises:
        FieldError: a field is missing, of another type, out of its range or not finite.
    """
    from pydantic import ValidationError

    try:
        if kind != _TABLE:
            _check_finite(value, name)
        return cast(T, _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise FieldError(_in_words(problem, value, name)) from error
    except (TypeError, ValueError) as error:  # no JSON: a date in YAML, for example
        raise FieldError(f"{name or 'the content'} holds what JSON cannot: {error}") from error


def field_in(table: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return one field of a JSON table, checked against a type.

    Raises:
        FieldError: it is missing, or has a wrong value.
    """
    if name not in table:
        raise FieldError(f"{name} is missing")
    return checked(kind, table[name], name)


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _in_words(problem: Mapping[str, Any], value: object, name: str) -> str:
    """Return pydantic's finding as "FIELD is VALUE: what it should be"."""
    found = value
    for part in problem["loc"]:  # parts that are no keys name members of a union
        if isinstance(found, dict) and part in found:
            name, found = f"{name}.{part}" if name else str(part), found[part]
        elif isinstance(found, list) and isinstance(part, int) and part < len(found):
            name, found = f"{name}[{part}]", found[part]
        elif problem["type"] == "missing":
            return f"{name}.{part} is missing" if name else f"{part} is missing"
        else:
            break
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is not known to this version of difflens"
    expected = str(problem["msg"]).removeprefix("Value error, ").replace("Input", "it", 1)
    for theirs, ours in (("an object", "a table"), ("a valid array", "a list")):
        expected = expected.replace(theirs, ours)
    return f"{name or 'the content'} is {short(found)}: {expected}"


def _json(path: Path | str, text: str) -> Any:
    if text.count("[") + text.count("{") > _CONTAINERS:
        raise DiffLensError(f"{path} has more than {_CONTAINERS:,} lists and tables")
    try:
        return json.loads(text)
    except RecursionError:
        raise DiffLensError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise DiffLensError(f"{path} is not readable JSON: {error}") from error


def _parsed(path: Path | str, content: Any, kind: Parse[T]) -> T:
    try:
        _check_plain(content, "", 0)
        if isinstance(kind, type) or get_origin(kind) is not None or not callable(kind):
            return checked(cast(type[T], kind), content)
        return kind(checked(_TABLE, content))
    except FieldError as error:
        raise DiffLensError(f"{path}: {error}") from error


def _check_plain(value: Any, name: str, depth: int) -> None:
    """Refuse deep nesting and text that is no Unicode."""
    if depth > _DEPTH:
        raise FieldError(f"{name.split('.')[0].split('[')[0] or 'the content'} is nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, "the name", depth)
            _check_plain(item, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if not isinstance(item, int | float):
                _check_plain(item, f"{name}[{number}]", depth + 1)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            where = name.encode(errors="replace").decode()
            raise FieldError(f"{where} is {ascii(value)[:80]}: it must be Unicode text") from error


def _check_finite(value: Any, name: str) -> None:
    """Refuse numbers that are NaN or infinite."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if not isinstance(item, int):
                _check_finite(item, f"{name}[{number}]")
    elif isinstance(value, float) and not isfinite(value):
        raise FieldError(f"{name} is {value}: it must be a finite number")
