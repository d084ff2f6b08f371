"""Scalars and pictures of a run for TensorBoard, if the package `tensorboard` is installed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Board:
    """A run's TensorBoard files. Without the package it prints a line about it, and writes nothing.

    Args:
        folder: the folder of the files.
        step: the step from which the run continues. TensorBoard drops points that an earlier process wrote
            after it.
        enabled: False on all processes but the first.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True):
        self.writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                missing = 'No TensorBoard files; they need `pip install "difflens[tensorboard]"`'
                print(missing, file=sys.stderr)
                return
            self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, **values: float) -> None:
        """Write the points of several curves at `step`."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Write a grey or RGB picture at `step`."""
        if self.writer is not None:
            form = "HW" if picture.mode == "L" else "HWC"
            self.writer.add_image(name, np.asarray(picture), step, dataformats=form)

    def close(self) -> None:
        """Flush and close the files."""
        if self.writer is not None:
            self.writer.close()
