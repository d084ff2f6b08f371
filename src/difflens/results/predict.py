"""The result of `difflens predict`, for every kind of model."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.table import Column, Table

from difflens.data.sources.table import SEPARATOR
from difflens.errors import listing
from difflens.metrics.multi_label import THRESHOLD
from difflens.results.base import Result, plain, skipped
from difflens.run.console import table_text
from difflens.run.text import csv_text


@dataclass(frozen=True)
class Prediction:
    """The class of one image.

    Attributes:
        COLUMNS: the first columns of a CSV file.
        HEADERS: the columns of a table after the image.
        image: its path.
        probabilities: in [0, 1] by class, the most probable first; they sum to 1.
        threshold: the least probability of a class, in [0, 1].
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "label", "probability")
    HEADERS: ClassVar[tuple[str, ...]] = ("label", "probability", "then")

    image: str
    probabilities: Mapping[str, float]
    threshold: float = 0.0

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return next(iter(self.probabilities.values()))

    @property
    def label(self) -> str | None:
        """The most probable class; None if its probability is below the threshold."""
        return next(iter(self.probabilities)) if self.probability >= self.threshold else None

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "image": self.image,
            "label": self.label,
            "probability": self.probability,
            "probabilities": plain(self.probabilities),
        }

    def cells(self) -> tuple[str, ...]:
        """Return the cells of `COLUMNS`."""
        return self.image, self.label or "", f"{self.probability:.6f}"

    def in_words(self, top: int) -> tuple[str, ...]:
        """Return the cells of `HEADERS`: the last has the next of the `top` most probable classes."""
        if self.label is None:
            return "no class", "", self._ranked(0, top)
        return self.label, f"{100 * self.probability:.1f} %", self._ranked(1, top)

    def _ranked(self, first: int, end: int) -> str:
        """Return some classes in words, by their rank."""
        ranked = list(self.probabilities.items())[first:end]
        return ", ".join(f"{name} {100 * value:.1f} %" for name, value in ranked)


@dataclass(frozen=True)
class MultiLabelPrediction(Prediction):
    """The classes of one image that may have several, or none. Its probabilities do not sum to 1."""

    COLUMNS = ("image", "labels")
    HEADERS = ("labels", "then")

    threshold: float = THRESHOLD

    @property
    def labels(self) -> list[str]:
        """The classes of a probability of at least `threshold`, the most probable first."""
        return [name for name, value in self.probabilities.items() if value >= self.threshold]

    def record(self) -> dict[str, Any]:
        return {"image": self.image, "labels": self.labels, "probabilities": plain(self.probabilities)}

    def cells(self) -> tuple[str, ...]:
        return self.image, SEPARATOR.join(self.labels)

    def in_words(self, top: int) -> tuple[str, ...]:
        count = len(self.labels)
        return self._ranked(0, count) or "no class", self._ranked(count, top)


@dataclass(frozen=True, kw_only=True)
class DensePrediction(ABC):
    """The prediction of a dense model for one image.

    Attributes:
        image: its path.
        width, height: in pixels.
        overlay: name of the file that shows the prediction over the image.
    """

    image: str
    width: int
    height: int
    overlay: str

    @property
    @abstractmethod
    def named(self) -> list[str]:
        """The predicted classes or objects in words, the largest or surest first."""

    def record(self) -> dict[str, Any]:
        """Plain values for predictions.json."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True, kw_only=True)
class SegmentedImage(DensePrediction):
    """The class of every pixel of one image.

    Attributes:
        mask: name of the file whose pixel values are those of the training masks.
        classes: share of the pixels by class, in [0, 1], the largest first.
        values: the class of each value that the mask shows; the value 255 is no class.
    """

    mask: str
    classes: Mapping[str, float]
    values: Mapping[str, str]

    @property
    def named(self) -> list[str]:
        return [f"{name} {100 * share:.1f} %" for name, share in self.classes.items()]


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """One detected object.

    Attributes:
        label: its class.
        bbox: left, top, width and height in pixels.
        score: confidence in [0, 1].
        segmentation: its mask in COCO's run lengths; None with Faster R-CNN.
    """

    label: str
    bbox: tuple[float, ...]
    score: float
    segmentation: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Plain values for predictions.json."""
        values = {"label": self.label, "bbox": list(self.bbox), "score": self.score}
        return values if self.segmentation is None else {**values, "segmentation": plain(self.segmentation)}


@dataclass(frozen=True, kw_only=True)
class DetectedImage(DensePrediction):
    """The objects of one image, the highest score first."""

    objects: tuple[DetectedObject, ...]

    @property
    def named(self) -> list[str]:
        return [f"{detected.label} {detected.score:.2f}" for detected in self.objects]

    def record(self) -> dict[str, Any]:
        return {**super().record(), "objects": [detected.record() for detected in self.objects]}


@dataclass(frozen=True, kw_only=True)
class PredictResult(Result, ABC):
    """The result of `predict`.

    Attributes:
        predictions: one prediction an image, in the order of the images.
        skipped_images: a line for each image that could not be read.
        format: format of `summary`.
        top: number of classes or objects of an image in a table.
        announced: True if the predictions were announced one by one.
    """

    predictions: tuple[Prediction, ...] | tuple[DensePrediction, ...]
    skipped_images: tuple[str, ...]
    format: Literal["table", "json", "csv"] = "table"
    top: int = 3
    announced: bool = False

    def records(self) -> list[dict[str, Any]]:
        """Plain values for JSON, one an image."""
        return [prediction.record() for prediction in self.predictions]

    @abstractmethod
    def table(self) -> str:
        """Return the predictions as a table."""

    def summary(self) -> str:
        return json.dumps(self.records(), indent=2) if self.format == "json" else self.table()

    def closing(self) -> str:
        return ("]" if self.format == "json" else "") if self.announced else self.summary()

    def left_out(self) -> str:
        return skipped(self.skipped_images)


@dataclass(frozen=True, kw_only=True)
class ClassPredictResult(PredictResult):
    """The classes of images, from a model of `probe`.

    Attributes:
        kind: the class of the predictions.
        out: the file of the predictions, as CSV or JSON; None if there is none.
    """

    predictions: tuple[Prediction, ...]
    kind: type[Prediction] = Prediction
    out: Path | None = None

    def summary(self) -> str:
        return self._csv() if self.format == "csv" else super().summary()

    def closing(self) -> str:
        return super().closing() if self.out is None else f"Predictions: {self.out}"

    def table(self) -> str:
        *headers, then = self.kind.HEADERS
        table = Table(Column("image", overflow="fold"), *headers, then if self.top > 1 else "")
        for prediction in self.predictions:
            table.add_row(prediction.image, *prediction.in_words(self.top))
        return table_text(table)

    def _csv(self) -> str:
        lines = [csv_line(prediction, not k) for k, prediction in enumerate(self.predictions)]
        return "\n".join(lines) or csv_text([self.kind.COLUMNS]).removesuffix("\n")


@dataclass(frozen=True, kw_only=True)
class DensePredictResult(PredictResult):
    """The masks or objects of images, from a model of `segment` or `detect`.

    Attributes:
        out: the folder of overlays, masks and predictions.json.
    """

    predictions: tuple[DensePrediction, ...]
    out: Path

    def table(self) -> str:
        table = Table(Column("image", overflow="fold"), "found")
        for prediction in self.predictions:
            named = prediction.named
            table.add_row(prediction.image, listing(named, self.top) if named else "nothing")
        return f"{table_text(table)}\n{self._where()}"

    def closing(self) -> str:
        return self._where() if self.announced and self.format == "table" else super().closing()

    def _where(self) -> str:
        return f"Overlays and predictions.json: {self.out}"


def line_of(
    prediction: Prediction | DensePrediction, form: Literal["table", "json", "csv"], top: int, first: bool
) -> str:
    """Return the lines that announce one prediction, as soon as it is known.

    Args:
        form: csv and json give together, with `PredictResult.closing`, the content of `summary`; table gives
            one line.
        top: number of classes or objects in the line.
        first: True for the first prediction, which stands behind the header.
    """
    if form == "json":
        record = json.dumps(prediction.record(), indent=2)
        return ("[\n" if first else ",\n") + "\n".join(f"  {line}" for line in record.split("\n"))
    if isinstance(prediction, DensePrediction):
        return f"{prediction.image}: {listing(prediction.named, top) if prediction.named else 'nothing'}"
    if form == "csv":
        return csv_line(prediction, first)
    *found, then = prediction.in_words(top)
    return f"{prediction.image}: {' '.join(filter(None, found))}" + (f", then {then}" if then else "")


def csv_line(prediction: Prediction, first: bool) -> str:
    """Return the line of an image in a CSV file, without its end, and for the first one the header."""
    classes = sorted(prediction.probabilities)
    shares = [f"{value:.6f}" for value in map(prediction.probabilities.get, classes)]
    # no two columns have one name
    names = [f"p({name})" if name in prediction.COLUMNS else name for name in classes]
    rows = [[*prediction.COLUMNS, *names], [*prediction.cells(), *shares]]
    return csv_text(rows if first else rows[1:]).removesuffix("\n")
