"""The result of `difflens pretrain`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.results.base import Result


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """The result of `pretrain`.

    Attributes:
        path: the folder of the model, which every other command takes as a backbone.
    """

    path: Path

    def summary(self) -> str:
        return f"Model: {self.path}"
