"""The result of `difflens distill`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.results.base import Result, skipped, stopped


@dataclass(frozen=True, kw_only=True)
class DistillResult(Result):
    """The result of `distill`.

    Attributes:
        path: the folder of the student, which every other command takes as a backbone.
        first_loss, last_loss: 1 - cosine to the teacher's maps in the first and the last epoch; None before
            the end of the first.
        epochs_done, epochs: whole epochs that are done, and those that were asked for.
        skipped_images: a line for each image that this call could not read.
    """

    path: Path
    first_loss: float | None
    last_loss: float | None
    epochs_done: int
    epochs: int
    skipped_images: tuple[str, ...] = ()

    def summary(self) -> str:
        lines = [f"Model: {self.path}"]
        if self.epochs_done < self.epochs:
            lines.insert(0, stopped(self.epochs_done, self.epochs))
        if self.first_loss is not None and self.last_loss is not None:
            lines.insert(
                0,
                f"1 - cosine to the teacher's maps: {self.first_loss:.4f} in the first epoch, "
                f"{self.last_loss:.4f} in epoch {self.epochs_done}",
            )
        return "\n".join(lines)

    def left_out(self) -> str:
        return skipped(self.skipped_images)
