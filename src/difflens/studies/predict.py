"""`difflens predict`: the predictions of a trained model of any task for image files."""

from collections.abc import Callable

from difflens.configs.options import resolve
from difflens.configs.predict import PredictConfig
from difflens.models.saved import (
    DetectionModel,
    MultiLabelModel,
    SegmentationModel,
    TrainedModel,
    model_task,
)
from difflens.results.predict import PredictResult
from difflens.tasks.classification.predict import predict_classes
from difflens.tasks.detection.predict import predict_objects
from difflens.tasks.predict import Announce
from difflens.tasks.segmentation.predict import predict_masks

_TASKS: dict[str, Callable[[PredictConfig, Announce | None], PredictResult]] = {
    TrainedModel.task: predict_classes,
    MultiLabelModel.task: predict_classes,
    SegmentationModel.task: predict_masks,
    DetectionModel.task: predict_objects,
}


def predict(config: PredictConfig, announce: Announce | None = None) -> PredictResult:
    """Predict classes with a model of `probe`, or masks or objects with a model of `segment` or `detect`.

    Args:
        announce: receives the text of each prediction as soon as it is known; None announces nothing.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the folder for overlays
            holds other files.
    """
    config = resolve(config)
    return _TASKS[model_task(config.model)](config, announce)
