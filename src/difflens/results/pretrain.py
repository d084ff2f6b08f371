"""The result of `difflens pretrain`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.configs.command_line import next_commands
from difflens.results.base import Result, skipped, stopped


@dataclass(frozen=True, kw_only=True)
class PretrainResult(Result):
    """The result of `pretrain`.

    Attributes:
        path: the folder of the model, which every other command takes as a backbone.
        skipped_images: a line for each image that this call could not read.
        epochs_done, epochs: whole epochs that are done, and those that were asked for.
        commands: command lines to run next.
    """

    path: Path
    skipped_images: tuple[str, ...] = ()
    epochs_done: int
    epochs: int
    commands: tuple[str, ...] = ()

    def summary(self) -> str:
        model = f"Model: {self.path}"
        if self.epochs_done < self.epochs:
            return f"{stopped(self.epochs_done, self.epochs)}\n{model}"
        return "\n".join([model, *next_commands(self.commands)])

    def left_out(self) -> str:
        return skipped(self.skipped_images)
