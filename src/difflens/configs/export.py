"""Options of `difflens export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from difflens.configs.options import Options


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a trained model as an ONNX file: images in, probabilities out, and for segments a mask.

    Images are float32, (B, C, S, S), in [-1, 1]. All of them get the same noise, as in `predict`. The
    file is run with onnxruntime and compared with the model before it is kept.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "file")
    HAS_DIRECTORY: ClassVar[bool] = False

    model: tyro.conf.Positional[Path]
    """The run directory of probe or segment, or its model/ folder."""
    file: tyro.conf.Positional[Path]
    """The file to write, which must not exist: model.onnx."""
    backbone: str | None = None
    """The backbone's new location, if it has moved. None: the location that the model stores."""
