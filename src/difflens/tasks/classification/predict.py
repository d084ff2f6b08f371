"""Labels for image files."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from difflens.configs.predict import PredictConfig
from difflens.data.files import list_images
from difflens.data.images import to_float
from difflens.data.loader import iterate
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError
from difflens.models.saved import TrainedModel
from difflens.run.processes import accelerator


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        image: its path.
        probabilities: by class, most probable first; they sum to 1.
    """

    image: str
    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        return next(iter(self.probabilities))


def predict(config: PredictConfig, skipped: list[str] | None = None) -> Iterator[Prediction]:
    """Predictions in the order of the images; `skipped` receives those that could not be read.

    Raises:
        DiffLensError: the model or an image cannot be read, or there are no images.
    """
    if config.top < 1 or config.draws < 1:
        raise DiffLensError("--top and --draws must be at least 1")
    if not config.images:
        raise DiffLensError("no images given: name image files or folders of images after the model")
    device = accelerator(config.device).device
    model = TrainedModel.load(config.model, config.backbone, device)
    split = FileSplit("images", [str(path) for path in list_images(config.images)])
    backbone = model.probe.extractor.backbone
    for batch in iterate(
        split, channels=backbone.in_channels, side=backbone.image_size, batch_size=32,
        on_bad_image=config.on_bad_image, bad=skipped, device=device,
    ):  # fmt: skip
        for row, values in zip(
            batch.rows.tolist(), model.probabilities(to_float(batch.images), config.draws), strict=True
        ):
            order = torch.argsort(values, descending=True, stable=True).tolist()
            yield Prediction(split.ids[row], {model.classes[k]: float(values[k]) for k in order})
