"""The result of `difflens pretrain`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.results.base import Result


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """What `pretrain` returns.

    Attributes:
        path: the folder of the model, a backbone that every other command takes.
    """

    path: Path

    def summary(self) -> str:
        return f"Model: {self.path}"
