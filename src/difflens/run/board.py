"""Scalars and pictures of a run for TensorBoard, where the package `tensorboard` is installed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Board:
    """A run's TensorBoard files; without the package says so and does nothing.

    Args:
        folder: where they lie.
        step: the step the run goes on from: TensorBoard drops what an earlier process wrote for later steps.
        enabled: False on all processes but one.
    """

    def __init__(self, folder: Path, step: int, enabled: bool = True):
        self.writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print(
                    'No TensorBoard files; they need `pip install "difflens[tensorboard]"`', file=sys.stderr
                )
                return
            self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, **values: float) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """`picture` is grey or RGB."""
        if self.writer is not None:
            form = "HW" if picture.mode == "L" else "HWC"
            self.writer.add_image(name, np.asarray(picture), step, dataformats=form)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
