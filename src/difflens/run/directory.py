"""Run directories: configuration, log, checkpoints and results of a command, and how a run is resumed.

    config.yaml   the resolved configuration
    log.jsonl     one JSON object per epoch or logging interval
    checkpoints/  last.pt, from which --resume continues
    trackers.json what the trackers of --log have
    metrics.json  the results; the run is finished when this file exists
    model/        the model that `difflens predict` or diffusers loads
    report.html   the report

Each file is written under a temporary name and renamed, so that readers never see an incomplete file.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator

from difflens.errors import DiffLensError, counted, expanded
from difflens.ranges import Natural
from difflens.run.files import replace_with, write_text, writing
from difflens.run.reading import (
    MEBIBYTE,
    FieldError,
    Parse,
    check_regular,
    field_in,
    read_json,
    read_lines,
    read_yaml,
    short,
)
from difflens.run.trackers import Trackers

T = TypeVar("T")

CONFIG = "config.yaml"
"""The file of a run's configuration."""
FINISHED = "metrics.json"
"""The file that a finished run has."""

_RESULTS = 128 * MEBIBYTE  # a confusion matrix of a thousand classes takes 10 for each seed


@dataclass(frozen=True)
class _Probed:
    """What a pre-training measured at one place."""

    block: Natural
    noise_step: float
    ridge: float
    knn: float
    effective_rank: float | None


# the fields of log records that difflens reads again
_LOGGED: dict[str, Any] = {
    "epoch": Natural,
    "step": Natural,
    "iteration": Natural,
    "loss": float,
    "head": str,
    "probe": tuple[_Probed, ...],
}

# one attempt a second: decoding workers of a killed process hold the lock for a moment longer
_LOCK_ATTEMPTS = 6


class RunDirectory:
    """The output folder of one command.

    Args:
        path: the folder; it is created if it does not exist.
        command: the name of the command, since a folder of another command is refused.
        config: the resolved configuration, plain values only.
        resume: True continues the run in the folder; False refuses a folder that is not empty; None does the
            same, for commands that cannot resume.
        process: with several processes, all check the folder and the first one writes; None: one process.
        growing: the name of a list in `config` that may have more entries than the stored one; `grow` stores
            it.
        changeable: the options that a resumed run may change.
        upgrade: converts the stored configuration of an earlier version to the names of this version.

    Attributes:
        path: the folder.
        main_process: True on the process that writes.
        created: True if the folder did not exist.
        fresh: True if the folder was created or empty, until `keep`.
        trackers: those that `track` started, until `working` ends.

    Raises:
        DiffLensError: the folder holds another run, or the same command with another configuration, or
            another process is writing to it.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        config: Mapping[str, Any],
        resume: bool | None = False,
        process: Accelerator | None = None,
        growing: str | None = None,
        changeable: Collection[str] = (),
        upgrade: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ):
        self.path = path
        self.main_process = process is None or process.is_main_process
        self._lock: int | None = None
        self.trackers = Trackers(path)
        self.created = not path.exists()
        self.fresh = self.created or (path.is_dir() and all(map(_is_partial, path.iterdir())))
        stored = path / CONFIG
        # plain values of their own, so that YAML needs no aliases
        self._record = record = json.loads(json.dumps({"command": command, **config}))
        self._log_lines: int | None = None
        if path.exists() and not path.is_dir():
            raise DiffLensError(f"{path} is a file; the output must be a folder")
        hint = "choose another folder" if resume is None else "choose another folder or add --resume"
        if stored.exists():
            if not resume:
                raise DiffLensError(f"{path} already holds a run: {hint}")
            earlier = {k: v for k, v in upgrade(read_record(path)).items() if k not in changeable}
            now = {k: v for k, v in record.items() if k not in changeable}
            _check_same(earlier, now, path, growing)
        elif not self.fresh:
            raise DiffLensError(f"{path} is not empty and holds no run of difflens: choose another folder")
        if process is not None:  # no process writes before all have checked the folder
            process.wait_for_everyone()
        if self.main_process:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DiffLensError(f"cannot make the folder {path}: {error.strerror}") from error
            self._lock = _lock(path)
            if self.fresh and stored.exists():  # another process created it since the check above
                raise DiffLensError(f"{path} already holds a run: {hint}")
            if not stored.exists():
                self._write_config()
        if process is not None:  # no process continues before the folder exists
            process.wait_for_everyone()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Return a context in which the run works; at its end trackers are closed and the lock is released.

        If an error ends a run in a fresh folder before the first checkpoint or `keep`, the folder's content
        is removed. An interruption removes it only before the run has written anything.
        """
        try:
            yield
        except BaseException as error:
            self.trackers.finish()  # before their files are removed
            if self.main_process and self.fresh and not self._begun(isinstance(error, Exception)):
                if self.created:
                    shutil.rmtree(self.path, ignore_errors=True)
                else:
                    for child in self.path.iterdir():
                        shutil.rmtree(child) if child.is_dir() else child.unlink()
            raise
        finally:
            self.trackers.finish()
            self.release()

    def _begun(self, failed: bool) -> bool:
        """Return True if the folder holds work to keep: after a failure a checkpoint, else any file but the
        configuration."""
        if failed:
            return any(self.path.rglob(self.checkpoint_path.name))
        return any(child.name != CONFIG and not _is_partial(child) for child in self.path.iterdir())

    def track(self, names: Sequence[str]) -> None:
        """Start trackers, which receive the curves of the training, on the process that writes.

        Raises:
            DiffLensError: a tracker does not start.
        """
        if self.main_process:
            self.trackers = Trackers(self.path, names, self._record)

    def grow(self) -> None:
        """Store the configuration with what a continuation changes, if it is not stored yet."""
        if read_record(self.path) != self._record:
            self._write_config()

    def _write_config(self) -> None:
        self.write(CONFIG, yaml.safe_dump(self._record, sort_keys=False))

    def keep(self) -> None:
        """Keep the folder's content if an error occurs from here on, so that the run can be resumed."""
        self.fresh = False

    def release(self) -> None:
        """Release the lock, so that other processes may write to the folder; later calls do nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        self.release()

    def write(self, name: str, text: str) -> Path:
        """Write a text file; return its path."""
        if self.main_process:
            write_text(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file; return its path."""
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def write_with(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Let `writer` write a temporary file, and rename it to `name`; return its path."""
        target = self.path / name
        if self.main_process:
            replace_with(target, writer)
        return target

    def write_folder(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Let `writer` fill a temporary folder, and rename it to `name`, in place of an earlier one; return
        its path."""
        target = self.path / name
        if self.main_process:
            temporary = target.with_name(f".{target.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                with writing(target):
                    temporary.mkdir(parents=True)
                    writer(temporary)
                    shutil.rmtree(target, ignore_errors=True)
                    temporary.replace(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return target

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl."""
        if self.main_process:
            lines = self._lines_logged()
            path = self.path / "log.jsonl"
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._log_lines = lines + 1

    def _lines_logged(self) -> int:
        if self._log_lines is None:
            self.cut_log(None)  # no line goes on behind an incomplete one
        return self._log_lines or 0

    def read_log(self) -> list[dict[str, Any]]:
        """Return the records of log.jsonl."""
        return read_log(self.path)

    @property
    def checkpoint_path(self) -> Path:
        """The file of the last checkpoint."""
        return checkpoint_of(self.path)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of tensors and plain values, with the length of the log, so that resuming
        repeats no line."""
        if self.main_process:
            record = {**state, "log_lines": self._lines_logged()}
            log = self.path / "log.jsonl"
            if record["log_lines"]:  # its lines must be on the disk before the checkpoint that counts them
                with writing(log), log.open("ab") as file:
                    os.fsync(file.fileno())

            def save(path: Path) -> None:
                with path.open("wb") as file:  # through Python, whose errors say why a file is not written
                    torch.save(record, file)
                    file.flush()
                    os.fsync(file.fileno())

            self.write_with("checkpoints/last.pt", save)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None.

        Raises:
            DiffLensError: the checkpoint or the log is damaged.
        """
        path = self.checkpoint_path
        if not path.exists():
            return None
        check_regular(path)
        try:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise DiffLensError(f"the checkpoint {path} is damaged: start again in another folder") from error
        try:
            lines = field_in(state if isinstance(state, dict) else {}, "log_lines", Natural)
        except FieldError as error:
            raise DiffLensError(f"{path}: {error}") from error
        logged = len(self.read_log())
        if logged < lines:
            raise DiffLensError(
                f"{path} counts {counted(lines, 'line')} of log.jsonl, which has {logged}: it was cut"
            )
        return dict(state)

    def cut_log(self, lines: int | None) -> None:
        """Cut the log to so many lines, those at the time of the checkpoint from which the run goes on.

        Args:
            lines: None cuts only a last line that is incomplete.
        """
        if self.main_process and (self.path / "log.jsonl").exists():
            kept = self.read_log()[:lines]
            self.write("log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
            self._log_lines = len(kept)

    def read_json(self, name: str, kind: Parse[T]) -> T:
        """Return the content of a JSON file as `kind`; raise DiffLensError if the file or a field is
        wrong."""
        return read_json(self.path / name, kind, _RESULTS)

    @property
    def finished(self) -> bool:
        """True if the run has its results."""
        return (self.path / FINISHED).exists()


def checkpoint_of(folder: Path) -> Path:
    """Return the file of the last checkpoint of a run directory."""
    return folder / "checkpoints" / "last.pt"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run directory.

    Raises:
        DiffLensError: config.yaml is missing or damaged, or does not name the command.
    """

    def parse(record: dict[str, Any]) -> dict[str, Any]:
        field_in(record, "command", str)
        return record

    return read_yaml(folder / CONFIG, parse)


def read_results(folder: Path, kind: Parse[T]) -> T:
    """Return the results of a finished run as `kind`.

    Raises:
        DiffLensError: metrics.json is missing or damaged, or a field is wrong.
    """
    return read_json(folder / FINISHED, kind, _RESULTS)


def read_log(folder: Path, *needed: str) -> list[dict[str, Any]]:
    """Return the records of a run directory's log.jsonl, without a last line that is incomplete.

    Args:
        needed: fields that each record must have.

    Raises:
        DiffLensError: the file is damaged, or a field is wrong.
    """

    def parse(record: dict[str, Any]) -> dict[str, Any]:
        for name in {*needed, *record} & {*_LOGGED, *needed}:
            field_in(record, name, _LOGGED.get(name, float))
        return record

    return read_lines(folder / "log.jsonl", parse)


def _is_partial(path: Path) -> bool:
    """Return True for an incomplete file that a killed process left."""
    return path.name.startswith(".") and ".partial" in path.name


def _lock(path: Path) -> int | None:
    """Lock the folder until this process closes the lock or ends; None if the system has no such locks.

    Raises:
        DiffLensError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
            time.sleep(1)
        else:
            return handle
    os.close(handle)
    raise DiffLensError(f"another process is writing to {path}: choose another folder")


def _check_same(
    stored: Mapping[str, Any], config: Mapping[str, Any], path: Path, growing: str | None
) -> None:
    """Raise DiffLensError that names the options in which two configurations differ."""
    different = [
        f"{key} was {short(stored.get(key))}, now {short(config.get(key))}"
        for key in {**stored, **config}
        if not _same(stored.get(key), config.get(key))
        and not (key == growing and _within(stored.get(key), config[key]))
    ]
    if different:
        raise DiffLensError(
            f"{path} holds another run: {'; '.join(different)} ({CONFIG}). Choose another folder"
        )


def _within(stored: object, grown: Collection[Any]) -> bool:
    """Return True for a list whose entries are all in `grown`."""
    return stored is None or (isinstance(stored, list) and all(each in grown for each in stored))


def _same(stored: object, value: object) -> bool:
    """Return True for equal values, and for two spellings of the same path, after equal prefixes as in
    idx:FOLDER."""
    if stored == value or not (isinstance(stored, str) and isinstance(value, str)):
        return stored == value
    (stored_prefix, _, stored_path), (prefix, _, path) = stored.rpartition(":"), value.rpartition(":")
    try:
        return stored_prefix == prefix and expanded(stored_path).samefile(expanded(path))
    except (DiffLensError, OSError, ValueError):
        return False
