"""`difflens predict`: a trained model's answers about image files, whatever its task is."""

from collections.abc import Callable

from difflens.configs.predict import PredictConfig
from difflens.errors import DiffLensError
from difflens.models.saved import DetectionModel, SegmentationModel, TrainedModel, model_task
from difflens.results.predict import PredictResult
from difflens.tasks.classification.predict import predict_classes
from difflens.tasks.detection.predict import predict_objects
from difflens.tasks.segmentation.predict import predict_masks

_TASKS: dict[str, Callable[[PredictConfig], PredictResult]] = {
    TrainedModel.task: predict_classes,
    SegmentationModel.task: predict_masks,
    DetectionModel.task: predict_objects,
}


def predict(config: PredictConfig) -> PredictResult:
    """Run `config`: classes from a model of `probe`; overlays, masks or objects from one of `segment` or `detect`.

    Raises:
        DiffLensError: the model or an image cannot be read, there are no images, or the folder for overlays holds
            other things.
    """
    task = model_task(config.model)
    if config.top < 1 or config.draws < 1:
        raise DiffLensError("--top and --draws must be at least 1")
    if not config.images:
        raise DiffLensError("no images given: name image files or folders of images after the model")
    return _TASKS[task](config)
