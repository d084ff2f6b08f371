"""`difflens export`: a trained model as an ONNX file."""

from pathlib import Path

from difflens.configs.export import ExportConfig
from difflens.configs.options import resolve
from difflens.errors import DiffLensError
from difflens.models.onnx import write_onnx
from difflens.models.saved import (
    MODELS,
    DetectionModel,
    SegmentationModel,
    TrainedModel,
    model_task,
)
from difflens.results.export import ExportResult
from difflens.run.files import replace_with


def export(config: ExportConfig) -> ExportResult:
    """Write a model of `probe` or `segment` as an ONNX file.

    Raises:
        DiffLensError: the model cannot be read or converted, it detects objects, the file exists, or a
            package is missing.
    """
    config = resolve(config)
    if config.file.exists():
        raise DiffLensError(f"{config.file} exists: name another file")
    task = model_task(config.model)
    if task == DetectionModel.task:
        raise DiffLensError(
            f"{config.model} detects objects, whose number depends on the image: only models of probe and "
            "segment are written as ONNX"
        )
    model = MODELS[task].load(config.model, config.backbone)
    assert isinstance(model, TrainedModel | SegmentationModel)
    backbone = model.probe.extractor.backbone
    side = model.head.side if isinstance(model, SegmentationModel) else backbone.image_size
    differences: list[float] = []

    def write(path: Path) -> None:
        differences.append(write_onnx(model, path))

    replace_with(config.file, write)
    return ExportResult(
        file=config.file,
        shape=(backbone.in_channels, side, side),
        classes=model.classes,
        difference=differences[0],
    )
