"""Classifies image files with a model of `difflens probe`."""

import torch

from difflens.configs.predict import PredictConfig
from difflens.data.changes import say_changes
from difflens.data.files import list_images
from difflens.data.images import to_float
from difflens.data.loader import iterate
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError
from difflens.models.saved import TrainedModel
from difflens.results.predict import ClassPredictResult, Prediction
from difflens.run.processes import accelerator
from difflens.tasks.predict import check_draws


def predict_classes(config: PredictConfig) -> ClassPredictResult:
    """Classify images, and return the predictions in their order.

    Raises:
        DiffLensError: the model or an image cannot be read, or there are no images.
    """
    if config.out is not None:
        raise DiffLensError("--out is for models of segment and detect; classes are printed")
    device = accelerator(config.device).device
    model = TrainedModel.load(config.model, config.backbone, device)
    split = FileSplit("images", [str(path) for path in list_images(config.images)])
    backbone = model.probe.extractor.backbone
    check_draws(config, backbone)
    say_changes(split, backbone.spec, backbone.in_channels, backbone.image_size)
    predictions, skipped = [], list[str]()
    for batch in iterate(
        split,
        channels=backbone.in_channels,
        side=backbone.image_size,
        batch_size=32,
        on_bad_image=config.on_bad_image,
        bad=skipped,
        device=device,
    ):
        probabilities = model.probabilities(to_float(batch.images), config.draws)
        for row, values in zip(batch.rows.tolist(), probabilities, strict=True):
            order = torch.argsort(values, descending=True, stable=True).tolist()
            predictions.append(
                Prediction(split.ids[row], {model.classes[k]: float(values[k]) for k in order})
            )
    return ClassPredictResult(
        predictions=tuple(predictions), skipped_images=tuple(skipped), format=config.format, top=config.top
    )
