"""The one exception for everything a user can get wrong."""

from collections.abc import Sequence
from math import inf


class DiffLensError(Exception):
    """What was wrong, where, and what would be right.

    The command line prints the message without a traceback and exits with code 2.
    """


def listing(items: Sequence[object], limit: int = 8) -> str:
    """Join `items` for a message, at most `limit` of them followed by how many more there are."""
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def require(**ranges: tuple[float | None, float, float | None]) -> None:
    """Check numbers that a user sets, which must be finite: name=(value, least, most); None for a value that was left out, or no bound.

    Raises:
        DiffLensError: names the first value outside its range, and the range.
    """
    for name, (value, least, most) in ranges.items():
        if value is not None and not (least <= value < inf and (most is None or value <= most)):
            span = f"at least {least:g}" if most is None else f"between {least:g} and {most:g}"
            raise DiffLensError(f"{name.replace('_', '-')} is {value:g}; it must be {span}")
