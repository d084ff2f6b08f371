"""The exception for all errors of a user, and helpers for its messages."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from difflens.ranges import Range, shown_number

_LONGEST = 200  # characters of a word in a message


class DiffLensError(Exception):
    """An error of the user; its message says what was wrong, where, and what would be right.

    The command line prints the message without a traceback and exits with code 2.
    """


def listing(items: Sequence[object], limit: int = 8) -> str:
    """Return `items` joined for a message: at most `limit` of them, cut if long, then the number of the
    rest."""
    words = (str(item) for item in items[:limit])
    text = ", ".join(word if len(word) <= _LONGEST else f"{word[:_LONGEST]}..." for word in words)
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def plural(noun: str, number: int) -> str:
    """Return a regular noun in the form that goes with a number: "class" for 1, else "classes"."""
    if number == 1:
        return noun
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "tch")) else "s")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 class", "2,000 classes"."""
    return f"{number:,} {plural(noun, number)}"


def named(noun: str, items: Sequence[object]) -> str:
    """Return items with their noun: "block 6", "blocks 5, 7"."""
    return f"{plural(noun, len(items))} {listing(items)}"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean X? " for the nearest of the known words, or nothing if none is as similar as
    `cutoff`, 0 to 1."""
    near = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}? " if near else ""


def nearby(path: Path) -> list[str]:
    """Return the paths of all that lies in the folder of `path`, for `did_you_mean`; none without one."""
    try:
        return [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.name else []
    except OSError:
        return []


def require(**ranges: tuple[float | None, float, float | None]) -> None:
    """Check that numbers are finite and within their ranges.

    Args:
        ranges: name=(value, least, most). A value of None passes; `most` None means no upper bound.

    Raises:
        DiffLensError: a value is outside its range; the message names the first one and its range.
    """
    for name, (value, least, most) in ranges.items():
        if value is not None and value not in (allowed := Range(least, most)):
            raise DiffLensError(f"{name.replace('_', '-')} is {shown_number(value)}; it must be {allowed}")


def expanded(path: Path | str) -> Path:
    """Return a path with `~` as the user's home; raise DiffLensError for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DiffLensError(f"no such file or folder: {path}; there is no user of this name") from error
