"""The result of `difflens.plan`, which --dry-run prints."""

from collections.abc import Mapping
from dataclasses import dataclass

from difflens.choices import Precision
from difflens.errors import counted
from difflens.results.base import Result

SPEEDS: Mapping[Precision, float] = {"float32": 4e13, "bfloat16": 3e14, "float16": 3e14}
"""Operations that one H100 is assumed to do in a second: about a third of its data sheet's dense matrix rate
in 16 bits (9.9e14), and six tenths of its rate in float32 (6.7e13)."""


@dataclass(frozen=True, kw_only=True)
class PlanResult(Result):
    """What a command would do, and what it would take.

    Attributes:
        command: the name of the command.
        backbone: the network, its parameters and precision.
        images: number of images by split or set.
        data: the name of the data, and where its size is from.
        reads: the places that are read, or the sampler.
        steps: optimiser steps; 0 if nothing is trained.
        schedule: epochs and batch in words; empty if nothing is trained.
        trainable_parameters: number of parameters that are trained.
        memory: bytes on the device, by use.
        stored: bytes of cached features or of images on the disk, by use.
        operations: multiplications and additions, each counted as one, by stage.
        precision: floating-point format of the backbone's arithmetic.
    """

    command: str
    backbone: str
    images: Mapping[str, int]
    data: str
    reads: str
    steps: int = 0
    schedule: str = ""
    trainable_parameters: int = 0
    memory: Mapping[str, float]
    stored: Mapping[str, float]
    operations: Mapping[str, float]
    precision: Precision

    @property
    def hours(self) -> float:
        """Hours on one H100, an estimate: all operations at the speed of `SPEEDS`."""
        return sum(self.operations.values()) / SPEEDS[self.precision] / 3600

    @property
    def gigabytes(self) -> float:
        """Memory on the device, in gigabytes: the sum of `memory`."""
        return sum(self.memory.values()) / 1e9

    def summary(self) -> str:
        images = ", ".join(f"{count:,} {name}" for name, count in self.images.items())
        total = sum(self.operations.values())
        facts = {
            "backbone": self.backbone,
            "images": f"{images}; {self.data}",
            "reads": self.reads,
            "steps": f"{self.steps:,}: {self.schedule}" if self.steps else "none: nothing is trained",
            "trained": counted(self.trainable_parameters, "parameter") if self.steps else "",
            "memory": _sizes(self.memory),
            "stores": _sizes(self.stored),
            "operations": f"{total:.3g}: " + ", ".join(f"{n} {v:.3g}" for n, v in self.operations.items()),
            "hours": f"{in_hours(self.hours)} on one H100, an estimate: counted operations at "
            f"{SPEEDS[self.precision]:.0e} a second, without reading files",
        }
        lines = [f"  {name:10}  {fact}" for name, fact in facts.items() if fact]
        return "\n".join([f"Dry run of {self.command}: nothing is read, downloaded or written", *lines])


def in_hours(hours: float) -> str:
    """Return a number of hours with two digits, or "under 0.01"."""
    return "under 0.01" if hours < 0.01 else f"{float(f'{hours:.2g}'):,g}"


def _sizes(sizes: Mapping[str, float]) -> str:
    """Return bytes in gigabytes: the sum, and its parts."""
    if not sizes:
        return ""
    parts = ", ".join(f"{name} {size / 1e9:,.2f}" for name, size in sizes.items())
    return f"{sum(sizes.values()) / 1e9:,.2f} GB: {parts}"
