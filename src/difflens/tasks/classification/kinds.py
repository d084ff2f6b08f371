"""What of a classifier depends on whether an image has one label or several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.configs.probe import ProbeConfig
from difflens.data.labels import one_label, several_classes
from difflens.data.split import ImageData
from difflens.models.saved import MultiLabelModel, TrainedModel
from difflens.results.probe import MultiLabelSeedResult, SeedFigures, SeedResult
from difflens.tasks.classification.predictions import (
    multi_label_csv,
    predictions_csv,
    read_multi_label,
    read_predictions,
)


@dataclass(frozen=True)
class Kind:
    """A kind of classifier.

    Attributes:
        model: the saved model; its probe has the loss, the probabilities and the evaluation.
        figures: the figures of a seed, with the fields of the evaluation's metrics.
        write: gives the content of predictions.csv for an evaluation and the names of all images.
        read: reads the file for the names of all images and the classes.
    """

    model: type[TrainedModel]
    figures: type[SeedFigures]
    write: Callable[[Any, Sequence[str]], str]
    read: Callable[[Path, Sequence[str], tuple[str, ...]], Any]


_ONE = Kind(TrainedModel, SeedResult, predictions_csv, read_predictions)
_SEVERAL = Kind(MultiLabelModel, MultiLabelSeedResult, multi_label_csv, read_multi_label)


def kind_of(data: ImageData) -> Kind:
    """Return the kind of classifier that learns the labels of `data`."""
    return _SEVERAL if data.multi_label else _ONE


def check_labels(config: ProbeConfig, data: ImageData) -> None:
    """Check that a probe's options have a meaning for the labels of its data.

    Raises:
        DiffLensError: names the option that reads one label an image, where images have several; or there is
            one class, so nothing to tell apart.
    """
    several_classes(data, "a probe")
    if config.head == "knn":
        one_label(data, "k-NN")
    if config.store is not None:
        one_label(data, "--store")
    for name in ("grid", "label_fraction", "label_smoothing"):
        if getattr(config, name):
            one_label(data, f"--{name.replace('_', '-')}")
