"""The one exception for everything a user can get wrong."""

from collections.abc import Sequence


class DiffLensError(Exception):
    """What was wrong, where, and what would be right.

    The command line prints the message without a traceback and exits with code 2.
    """


def listing(items: Sequence[object], limit: int = 8) -> str:
    """Join `items` for a message, at most `limit` of them followed by how many more there are."""
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
