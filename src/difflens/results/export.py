"""The result of `difflens export`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.errors import counted
from difflens.results.base import Result


@dataclass(frozen=True, kw_only=True)
class ExportResult(Result):
    """A model as a file.

    Attributes:
        file: the ONNX file.
        shape: (C, S, S) of the images that it takes, in [-1, 1].
        classes: their names, in the order of the probabilities.
        difference: the largest difference of a probability between the file and the model.
    """

    file: Path
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    difference: float

    def summary(self) -> str:
        size = " x ".join(map(str, self.shape))
        return (
            f"ONNX: {self.file}, images of {size} in [-1, 1] to the probabilities of "
            f"{counted(len(self.classes), 'class')}; it differs from the model by {self.difference:.1e}"
        )
