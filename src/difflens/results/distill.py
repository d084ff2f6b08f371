"""The result of `difflens distill`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.results.base import Result, skipped


@dataclass(frozen=True, kw_only=True)
class DistillResult(Result):
    """The result of `distill`.

    Attributes:
        path: the folder of the student, which every other command takes as a backbone.
        first_loss, last_loss: 1 - cosine to the teacher's maps in the first and the last epoch; None before
            the end of the first.
        skipped_images: a line for each image that this call could not read.
    """

    path: Path
    first_loss: float | None
    last_loss: float | None
    skipped_images: tuple[str, ...] = ()

    def summary(self) -> str:
        if self.first_loss is None or self.last_loss is None:
            return f"Model: {self.path}"
        return (
            f"1 - cosine to the teacher's maps: {self.first_loss:.4f} in the first epoch, "
            f"{self.last_loss:.4f} in the last\nModel: {self.path}"
        )

    def left_out(self) -> str:
        return skipped(self.skipped_images)
