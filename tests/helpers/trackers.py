"""Trackers, and what they were given."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[tuple[int, float]]]


def curves(run: Path) -> Curves:
    """The points, (step, value), of each curve in a run's TensorBoard files."""
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        name: [(point.step, point.value) for point in board.Scalars(name)] for name in board.Tags()["scalars"]
    }


class Recorder(GeneralTracker):
    """Stands for wandb, whose service cannot be reached: keeps what it is given, by the name of the run."""

    name, requires_logging_directory, main_process_only = "wandb", False, False
    runs: ClassVar[dict[str, "Recorder"]] = {}
    fails_at: ClassVar[float] = float("inf")
    """The step at which giving points fails; 0: it does not start."""

    def __init__(self, project: str, **options: Any):
        super().__init__()
        self.options = {"project": project, **options}

    def start(self) -> None:
        if not self.fails_at:
            raise ValueError("no API key\nconfigure one")
        earlier = self.runs.get(self.options["id"])
        self.configs: list[dict[str, Any]] = [] if earlier is None else earlier.configs
        self.points: list[tuple[int, dict[str, float]]] = [] if earlier is None else earlier.points
        self.open = True
        self.runs[self.options["id"]] = self

    @property
    def tracker(self) -> "Recorder":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configs.append(values)

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None
        if step >= self.fails_at:
            raise ConnectionError("the service is gone")
        self.points.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        pass

    def finish(self) -> None:
        self.open = False


def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Let `Recorder` stand for wandb; return its runs."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(Recorder, "runs", {})
    return Recorder.runs
