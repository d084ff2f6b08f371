"""The result of `difflens presets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from difflens.results.base import Result
from difflens.run.console import table_text


@dataclass(frozen=True)
class PresetsResult(Result):
    """Recipes.

    Attributes:
        recipes: the options that a preset sets, by command and by name of the preset.
    """

    recipes: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def summary(self) -> str:
        tables = []
        for command, recipes in self.recipes.items():
            table = Table(Column(f"{command} --preset", no_wrap=True), "sets")
            for name, options in recipes.items():
                table.add_row(name, ", ".join(f"{key} {_shown(value)}" for key, value in options.items()))
            tables.append(table_text(table))
        return "\n".join(tables)


def _shown(value: object) -> str:
    """Return a value as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
