"""The curves of a run for TensorBoard, Weights & Biases and others, through accelerate's trackers.

trackers.json   by tracker: the last step that it has, and its name of the run
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from difflens.errors import DiffLensError
from difflens.ranges import Natural
from difflens.run.console import warn
from difflens.run.files import write_text
from difflens.run.reading import MEBIBYTE, read_json, reason
from difflens.run.text import one_line

STATE = "trackers.json"
"""The file of what trackers have of a run."""

_PICTURES = ("tensorboard", "wandb", "swanlab")  # those that take pictures in one form

_Give = Callable[[str, Any], object]


@dataclass(frozen=True)
class _Known:
    """What a tracker has of a run: all points up to a step, under its own name of the run."""

    step: Natural
    run: str


class Trackers:
    """The trackers of a run. A continued run goes on where they are: no point is given twice.

    A tracker that fails later is left out with a warning, and the training goes on.

    Args:
        folder: the run directory, which holds the files of those that write files.
        names: the trackers; none on all processes but the first.
        config: the configuration of the run, plain values.

    Raises:
        DiffLensError: a tracker does not start.
    """

    def __init__(self, folder: Path, names: Sequence[str] = (), config: Mapping[str, Any] | None = None):
        self.folder = folder
        self._trackers: dict[str, Any] = {}
        state = folder / STATE
        self._known = read_json(state, dict[str, _Known], MEBIBYTE) if names and state.exists() else {}
        self._step = 0
        for name in dict.fromkeys(names):
            try:
                self._start(name, config or {})
            except Exception as error:  # each library has its own
                self.finish()
                raise DiffLensError(f"--log {name} does not start: {reason(error)}") from error
        self._before = {name: self._known[name].step for name in self._trackers}
        self._write()

    def _start(self, name: str, config: Mapping[str, Any]) -> None:
        known = self._known.get(name)
        run = secrets.token_hex(4) if known is None else known.run
        tracker = _make(name, self.folder, run, known)
        tracker.start()
        self._trackers[name] = tracker
        if known is None:
            if name != "tensorboard":  # which would show it as another run
                tracker.store_init_configuration({key: _plain(value) for key, value in config.items()})
            self._known[name] = _Known(0, _own_name(name, tracker, run))

    def begin(self, step: int) -> None:
        """Say at which step the training goes on; a tracker that joins a run has no earlier points."""
        self._step = step
        self._before = {name: max(before, step) for name, before in self._before.items()}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Give the points of several curves at `step` to the trackers that do not have them."""
        self._step = step
        self._give(step, lambda name, tracker: tracker.log(dict(values), step=step))
        known = {name: max(step, self._known[name].step) for name in self._trackers}
        self._known |= {name: _Known(last, self._known[name].run) for name, last in known.items()}
        self._write()

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Give a picture at `step` to the trackers that take pictures and do not have it."""
        pixels = np.asarray(picture.convert("RGB"))[None]

        def give(tracker_name: str, tracker: Any) -> None:
            if tracker_name in _PICTURES:
                form = {"dataformats": "NHWC"} if tracker_name == "tensorboard" else {}
                tracker.log_images({name: pixels}, step=step, **form)

        self._give(step, give)

    def results(self, values: Mapping[str, float | None]) -> None:
        """Give the results of the run, without those that are None, at the last step of its training."""
        known = {name: value for name, value in values.items() if value is not None}
        self._each(lambda name, tracker: tracker.log(dict(known), step=self._step))

    def finish(self) -> None:
        """Close all trackers; later calls do nothing."""
        self._each(lambda name, tracker: tracker.finish())
        self._trackers.clear()

    def _give(self, step: int, give: _Give) -> None:
        self._each(lambda name, tracker: step > self._before[name] and give(name, tracker))

    def _each(self, give: _Give) -> None:
        for name, tracker in [*self._trackers.items()]:
            try:
                give(name, tracker)
            except Exception as error:  # each library has its own
                del self._trackers[name]
                warn(f"--log {name} failed, and the run goes on without it: {reason(error)}")

    def _write(self) -> None:
        if self._trackers:
            known = {name: asdict(each) for name, each in self._known.items()}
            write_text(self.folder / STATE, json.dumps(known) + "\n")


def _make(name: str, folder: Path, run: str, known: _Known | None) -> GeneralTracker:
    """Return a tracker that will start the run of the name `run`, or go on with it if it is known."""
    title, project = one_line(folder.resolve().name), "difflens"
    options: dict[str, Any]
    match name:
        case "tensorboard":  # drops points that it may have after the last known one
            project = "tensorboard"
            options = {"logging_dir": folder, "purge_step": None if known is None else known.step + 1}
        case "wandb":
            project = os.environ.get("WANDB_PROJECT", project)
            options = {"dir": folder, "name": title, "id": run, "resume": "allow"}
        case "swanlab":
            options = {
                "logdir": str(folder / "swanlab"),
                "experiment_name": title,
                "id": run,
                "resume": "allow",
            }
        case "trackio":
            options = {"name": f"{title}-{run}", "resume": "allow"}
        case "mlflow":
            options = {"run_name": title} if known is None else {"run_id": run}
        case "aim":
            options = {"logging_dir": folder, **({} if known is None else {"run_hash": run})}
        case _:  # dvclive
            options = {"dir": str(folder / "dvclive"), "resume": True, "save_dvc_exp": False, "dvcyaml": None}
    tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[name](project, **options)
    return tracker


def _own_name(name: str, tracker: GeneralTracker, run: str) -> str:
    """Return the tracker's name of its run, where it gives names itself, or else `run`."""
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.hash) if name == "aim" else run


def _plain(value: object) -> object:
    """Return a value of a configuration that every tracker takes."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
