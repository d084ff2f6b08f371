"""Classifies image files with a model of `difflens probe`."""

import torch

from difflens.configs.predict import PredictConfig
from difflens.data.changes import say_changes
from difflens.data.files import list_images
from difflens.data.images import to_float
from difflens.data.loader import iterate
from difflens.data.split import FileSplit
from difflens.errors import DiffLensError
from difflens.models.saved import MultiLabelModel, TrainedModel, model_task
from difflens.results.predict import ClassPredictResult, MultiLabelPrediction, Prediction, line_of
from difflens.run.files import check_writable, write_text
from difflens.run.processes import accelerator
from difflens.tasks.predict import Announce, check_draws


def predict_classes(config: PredictConfig, announce: Announce | None = None) -> ClassPredictResult:
    """Classify images with a model of one label an image or of several; predictions keep their order.

    Args:
        announce: receives the text of each prediction as soon as it is known; None announces nothing.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the file exists.
    """
    out = config.out
    if out is not None:
        if config.format == "table":
            raise DiffLensError("--out is the file of classes as csv or json: add --format csv or json")
        if out.exists():
            raise DiffLensError(f"{out} exists: name another file with --out")
        check_writable(out)
        announce = None
    device = accelerator(config.device).device
    several = model_task(config.model) == MultiLabelModel.task
    model = (MultiLabelModel if several else TrainedModel).load(config.model, config.backbone, device)
    kind = MultiLabelPrediction if several else Prediction
    threshold = {} if config.threshold is None else {"threshold": config.threshold}
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
            probabilities_of = {model.classes[k]: float(values[k]) for k in order}
            predictions.append(kind(split.ids[row], probabilities_of, **threshold))
            if announce is not None:
                announce(line_of(predictions[-1], config.format, config.top, len(predictions) == 1))
    result = ClassPredictResult(
        predictions=tuple(predictions),
        kind=kind,
        skipped_images=tuple(skipped),
        format=config.format,
        top=config.top,
        announced=announce is not None and bool(predictions),
        out=out,
    )
    if out is not None:
        write_text(out, result.summary() + "\n")
    return result
