"""The data of an earlier run: loaded again, and recognised by their fingerprint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from difflens.data.labels import limited
from difflens.data.load import load_data, load_unlabelled
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError
from difflens.ranges import Count, Natural, Share


@dataclass(frozen=True)
class RunData:
    """What the configuration of a run of probe, demo or pretrain says about its data.

    Attributes:
        data_fingerprint: of the images and labels that the run read; None in earlier versions.
        limit_keeps: None in version 0.1, whose pretrain took the first `limit` images.
    """

    data: str
    command: str = "probe"
    method: str | None = None
    val_fraction: Share | None = None
    limit: Count | None = None
    limit_keeps: str | None = None
    test_images: Natural | None = None
    seed: Natural = 0
    data_fingerprint: str | None = None

    def load(self, run: str | Path) -> ImageData:
        """Return the data of a run of probe or demo, with labels.

        Args:
            run: its name, for messages.

        Raises:
            DiffLensError: the data cannot be loaded from here, or are not those that the run read.
        """
        try:
            data = load_data(self.data, val_fraction=self.val_fraction)
        except DiffLensError as error:
            raise self._lost(run, error) from error
        read = data
        if self.command == "demo" and self.test_images is not None:
            read = replace(data, test=limited(data.test, self.test_images, self.seed))
        self._require(run, read)
        return data

    def load_images(self, run: str | Path) -> ImageSplit:
        """Return the images that a run of pretrain was trained on; arguments and errors as in `load`."""
        try:
            images = load_unlabelled(self.data, val_fraction=self.val_fraction)
        except DiffLensError as error:
            raise self._lost(run, error) from error
        trained = self.part_of(images)
        if self.method != "supervised":  # whose fingerprint is that of images with labels
            self._require(run, trained)
        return trained

    def part_of(self, images: ImageSplit) -> ImageSplit:
        """Return the images that a run of pretrain was trained on."""
        if self.limit is None or self.limit_keeps is not None:
            return limited(images, self.limit, self.seed)
        return images.subset(torch.arange(min(self.limit, len(images))))

    def _require(self, run: str | Path, data: ImageData | ImageSplit) -> None:
        read = self.data_fingerprint
        if read is not None and read != data.fingerprint() and read != data.former_fingerprint():
            raise DiffLensError(
                f"{run} read other images than --data {self.data} names here; --data names the images to read"
            )

    def _lost(self, run: str | Path, error: DiffLensError) -> DiffLensError:
        return DiffLensError(
            f"{run} read --data {self.data}, which cannot be loaded from here: {error}. --data names the "
            "images"
        )
