"""The result of `difflens pretrain`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.configs.command_line import next_commands
from difflens.results.base import Result, skipped


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """The result of `pretrain`.

    Attributes:
        path: the folder of the model, which every other command takes as a backbone.
        skipped_images: a line for each image that this call could not read.
        commands: command lines to run next.
    """

    path: Path
    skipped_images: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    def summary(self) -> str:
        return "\n".join([f"Model: {self.path}", *next_commands(self.commands)])

    def left_out(self) -> str:
        return skipped(self.skipped_images)
