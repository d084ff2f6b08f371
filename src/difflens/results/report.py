"""The result of `difflens report`."""

from dataclasses import dataclass
from pathlib import Path

from difflens.results.base import Result
from difflens.results.fidelity import FidelityResult


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """How well one head reads the backbone.

    Attributes:
        title: the head and where it reads.
        data: the data set.
        top1: accuracy in [0, 1], the mean over seeds.
        interval: 95 % interval of `top1`; None for several seeds.
        deviation: standard deviation of `top1` between seeds; None for one seed.
    """

    title: str
    data: str
    top1: float
    interval: tuple[float, float] | None
    deviation: float | None
    train_images: int
    test_images: int
    trainable_parameters: int


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """What `report` returns.

    Attributes:
        path: the HTML file.
        heads: how well the backbone is read.
        distances: how far its samples are from real images.
    """

    path: Path
    heads: tuple[HeadScore, ...]
    distances: tuple[FidelityResult, ...]

    def summary(self) -> str:
        return f"Report: {self.path}"
