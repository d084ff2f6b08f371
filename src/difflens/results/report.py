"""The result of `difflens report`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.processes.base import Level
from difflens.results.base import Result
from difflens.results.fidelity import FidelityResult


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """The accuracy of one head on the features of the backbone.

    Attributes:
        title: the head and the places that it reads.
        noise_steps: the noise steps of these places; empty if they are not known.
        data: name of the data set.
        top1: accuracy in [0, 1], the mean over seeds.
        interval: 95 % interval of `top1`; None for several seeds.
        deviation: standard deviation of `top1` between seeds; None for one seed.
        train_images, test_images: how many were read.
        trainable_parameters: number of parameters that were trained.
    """

    title: str
    data: str
    top1: float
    interval: tuple[float, float] | None
    deviation: float | None
    train_images: int
    test_images: int
    trainable_parameters: int
    noise_steps: tuple[Level, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """The result of `report`.

    Attributes:
        path: the HTML file.
        heads: the accuracies of heads on the backbone's features.
        distances: the distances of its samples from real images.
    """

    path: Path
    heads: tuple[HeadScore, ...]
    distances: tuple[FidelityResult, ...]

    def summary(self) -> str:
        return f"Report: {self.path}"
