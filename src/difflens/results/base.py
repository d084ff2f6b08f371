"""The base of every result: a summary for people, and plain values for JSON."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from typing import Any

from difflens.errors import counted, listing
from difflens.run.reading import field_in


class Result(ABC):
    """The typed figures that a command returns."""

    @abstractmethod
    def summary(self) -> str:
        """The text that the command line prints."""

    def _repr_html_(self) -> str:
        """Show the summary in a notebook."""
        return f"<pre>{escape(self.summary())}</pre>"

    def closing(self) -> str:
        """The text that the command line prints after what it has announced; empty for nothing."""
        return self.summary()

    def left_out(self) -> str:
        """The images or annotations that the command left out, in words; empty if there are none."""
        return ""


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: dataclasses as dictionaries, tuples and tensors as lists."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def without_nan(value: Any) -> Any:
    """Return a value as `plain` does, with None in place of each NaN, which JSON does not have."""
    value = plain(value)
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if value != value else value


def fields_in(kind: type, metrics: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Return the fields of the dataclass `kind` from the JSON value `metrics`, checked against their types.

    Args:
        others: fields that come from elsewhere.

    Raises:
        FieldError: a field is missing, or has a wrong value.
    """
    return {
        field.name: field_in(metrics, field.name, field.type)
        for field in fields(kind)
        if field.name not in others and (field.name in metrics or field.default is MISSING)
    }


def stopped(done: int, planned: int) -> str:
    """Return a line on a training that ended before its last epoch."""
    return f"Stopped after {done} of {counted(planned, 'epoch')}: the time was up. --resume continues"


def skipped(images: Sequence[str]) -> str:
    """Return what is said about images that could not be read; empty for none."""
    return _named(f"skipped {counted(len(images), 'unreadable image')}", images)


def bad(annotations: Sequence[str]) -> str:
    """Return what is said about annotations that are invalid; empty for none."""
    return _named(f"left out {counted(len(annotations), 'bad annotation')}", annotations)


def _named(what: str, each: Sequence[str]) -> str:
    """Return one line for up to five, and a line for each of more."""
    if len(each) > 5:
        return "\n  ".join([f"{what}:", *each])
    return f"{what}: {listing(each)}" if each else ""
