"""What every result has: a summary for people, and plain values for JSON."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from difflens.errors import listing


class Result(ABC):
    """What a command returns: its figures, with names."""

    @abstractmethod
    def summary(self) -> str:
        """The text that the command line prints."""

    def left_out(self) -> str:
        """One line about the images or annotations that the command left out; empty if there are none."""
        return ""


def plain(value: Any) -> Any:
    """A value as JSON holds it: a dataclass or a mapping as a dictionary, a tuple or a tensor as a list."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def tuples(value: Any) -> Any:
    """A value that JSON holds with every list as a tuple."""
    if isinstance(value, Mapping):
        return {key: tuples(each) for key, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def known(kind: type, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `metrics` that are fields of a dataclass, lists as tuples."""
    return {field.name: tuples(metrics[field.name]) for field in fields(kind) if field.name in metrics}


def skipped(images: Sequence[str]) -> str:
    """The line about images that could not be read."""
    return f"skipped {len(images)} unreadable images: {listing(images, 5)}" if images else ""


def bad(annotations: Sequence[str]) -> str:
    """The line about annotations that cannot be right."""
    return f"left out {len(annotations)} bad annotations: {listing(annotations, 5)}" if annotations else ""
